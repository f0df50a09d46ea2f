"""Modules do not know each other in circles, not even by their types."""

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others_not_even_for_types():
    graph = grimp.build_graph("agent", exclude_type_checking_imports=False)
    known = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(known) > 100
    TopologicalSorter(known).prepare()  # raises CycleError, with the circle
