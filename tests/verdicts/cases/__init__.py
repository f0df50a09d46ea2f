"""All cases, by what they break."""

from tests.verdicts.case import Case
from tests.verdicts.cases import rules

CASES: tuple[Case, ...] = (*rules.CASES,)
