"""All cases, by what they break."""

from tests.verdicts.case import Case
from tests.verdicts.cases import conntrack, innocents, network, rules, servers, services, sockets, translations

CASES: tuple[Case, ...] = (
    *conntrack.CASES,
    *innocents.CASES,
    *network.CASES,
    *rules.CASES,
    *servers.CASES,
    *services.CASES,
    *sockets.CASES,
    *translations.CASES,
)
