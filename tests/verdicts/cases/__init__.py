"""All cases, by what they break."""

from collections import Counter

from tests.verdicts.case import Case
from tests.verdicts.cases import (
    benign,
    bridges,
    conntrack,
    network,
    planes,
    rules,
    servers,
    services,
    sockets,
    translations,
)

GROUPS = (
    bridges.CASES,
    conntrack.CASES,
    benign.CASES,
    network.CASES,
    planes.CASES,
    rules.CASES,
    servers.CASES,
    services.CASES,
    sockets.CASES,
    translations.CASES,
)
CASES: tuple[Case, ...] = tuple(case for group in GROUPS for case in group)
OF_EACH_KIND = 1
"""Faults of one group, code and data plane that `make test` injects; `make test-slow` injects the others."""


def variants() -> frozenset[str]:
    """The faults that `make test` leaves to `make test-slow`: those that are alike to others."""
    seen: Counter[object] = Counter()
    left: set[str] = set()
    for number, group in enumerate(GROUPS):
        for case in group:
            family = case.lab.plane.partition(",")[0]
            kind = number, case.code, family, case.lab.link, case.lab.port
            alike = seen[kind] >= OF_EACH_KIND and group is not benign.CASES
            if case.slow or alike:
                left.add(case.fault)
            else:
                seen[kind] += 1
    return frozenset(left)
