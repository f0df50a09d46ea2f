"""Every fault, injected once on this kernel, gets its cause, confidence and last hop; every benign one none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.lab.processes import PATIENCE
from tests.verdicts.campaign import Result, run
from tests.verdicts.case import Case
from tests.verdicts.cases import CASES, variants

pytestmark = pytest.mark.kernel
VARIANTS = variants()


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest) -> Callable[[Case], Result]:
    """All of those with one kind of lab at once, when the first of them is asked for: a lab serves many."""
    wanted = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    results: dict[str, Result] = {}

    def result_of(case: Case) -> Result:
        if case.fault not in results:
            alike = [one for one in wanted if one.lab == case.lab]
            results.update({result.case.fault: result for result in run(alike, progress=True)})
        return results[case.fault]

    return result_of


@pytest.mark.timeout(600 * PATIENCE)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.fault, marks=pytest.mark.slow if case.fault in VARIANTS else ()) for case in CASES],
)
def test_the_fault_gets_its_cause(campaign: Callable[[Case], Result], case: Case):
    result = campaign(case)
    if result.unsupported:
        pytest.skip(f"not on this kernel: {result.unsupported}")
    assert result.good, "\n".join(result.mistakes)
