"""All cases, by what they break."""

from tests.verdicts.case import Case
from tests.verdicts.cases import (
    bridges,
    conntrack,
    innocents,
    network,
    planes,
    rules,
    servers,
    services,
    sockets,
    translations,
)

CASES: tuple[Case, ...] = (
    *bridges.CASES,
    *conntrack.CASES,
    *innocents.CASES,
    *network.CASES,
    *planes.CASES,
    *rules.CASES,
    *servers.CASES,
    *services.CASES,
    *sockets.CASES,
    *translations.CASES,
)
