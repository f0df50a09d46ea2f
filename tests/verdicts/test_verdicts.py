"""Every fault, injected once on this kernel, gets its cause, confidence and last hop; every innocent none."""

from __future__ import annotations

import pytest

from agent.lab.processes import PATIENCE
from tests.verdicts.campaign import Result, run
from tests.verdicts.case import Case
from tests.verdicts.cases import CASES, variants

pytestmark = pytest.mark.kernel
VARIANTS = variants()


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest) -> dict[str, Result]:
    """All of those that were asked for at once: a lab serves many."""
    wanted = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]
    return {result.case.fault: result for result in run(wanted, progress=True)}


@pytest.mark.timeout(600 * PATIENCE)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.fault, marks=pytest.mark.slow if case.fault in VARIANTS else ()) for case in CASES],
)
def test_the_fault_gets_its_cause(campaign: dict[str, Result], case: Case):
    result = campaign[case.fault]
    if result.unsupported:
        pytest.skip(f"not on this kernel: {result.unsupported}")
    assert result.good, "\n".join(result.mistakes)
