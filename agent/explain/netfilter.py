"""What it means when a netfilter hook dropped a packet: a rule, a full connection table, or a lost race for it.

The kernel frees all of them in nf_hook_slow() with the same reason. What tells them apart are the conntrack counters of
the CPU that had the packet, read at the hop before and at the drop: nf_conntrack_in() and __nf_conntrack_confirm()
(net/netfilter/nf_conntrack_core.c) count what they refuse, and rules count nothing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.evidence import is_confirmed, is_tracked, is_translated, rise_until, rise_words
from agent.explain.verdict import HIGH, MEDIUM, Confidence
from agent.hop.drops import UNSAID
from agent.hop.record import COUNTERS

if TYPE_CHECKING:
    from agent.context.counters import NamespaceCounters, NetnsCounters
    from agent.explain.evidence import Rise
    from agent.session.outcome import PacketDrop

TABLE_FULL, RACE, RULE = "ConntrackTableFull", "ConntrackRace", "PolicyDrop"
NEARLY_FULL = 0.98
BEFORE_THE_TABLE = frozenset({"PREROUTING", "OUTPUT"})
"""Hooks at which a packet gets its conntrack entry."""
AT_CONFIRMATION = frozenset({"POSTROUTING", "INPUT"})
"""Hooks at which a new entry gets into the table."""


class Refusal(NamedTuple):
    """Who refused, how sure that is, and why."""

    code: str
    confidence: Confidence
    evidence: list[str]


def refusal(drop: PacketDrop, namespaces: NamespaceCounters, since_ns: int) -> Refusal | None:
    """Who of netfilter refused a packet; None if it was not netfilter."""
    why = drop.why
    location = why.location or ""
    if why.reason != "NETFILTER_DROP" and (why.reason not in UNSAID or location != "nf_hook_slow"):
        return None
    if location.startswith("nft_do_chain"):
        return Refusal(RULE, HIGH, [])
    if why.hook == "OUTPUT" and is_translated(drop.hop):
        # ip_route_me_harder() of the translation may have found no route (net/netfilter/nf_nat_core.c).
        return Refusal(RULE, MEDIUM, ["it is translated: no route to where it was to go would look the same"])
    rise = rise_until(drop)
    return _by_polled_counters(drop, namespaces, since_ns) if rise is None else _by_own_counters(drop, rise, namespaces)


def _by_own_counters(drop: PacketDrop, rise: Rise, namespaces: NamespaceCounters) -> Refusal:
    """The packet did not leave its CPU between the two readings."""
    evidence = [rise_words(rise)]
    if rise.insert_failed and is_tracked(drop.hop) and not is_confirmed(drop.hop):
        return Refusal(RACE, HIGH, [*evidence, "its conntrack entry is new and not in the table"])
    if rise.drop and not is_tracked(drop.hop):
        now = namespaces.counters(drop.hop.netns, drop.hop.ts_ns)[1]
        return Refusal(TABLE_FULL, HIGH, [*evidence, *_fill_words(now)])
    if rise.invalid:
        evidence.append("connection tracking calls the packet INVALID")
    return Refusal(RULE, MEDIUM if rise.drop or rise.insert_failed else HIGH, evidence)


def _by_polled_counters(drop: PacketDrop, namespaces: NamespaceCounters, since_ns: int) -> Refusal:
    """No hop before it on its CPU: what a program on this node sends dies before any device sees it."""
    proof = _proof_of_a_rule(drop)
    if proof:
        return Refusal(RULE, HIGH, [proof])
    before, now = namespaces.counters(drop.hop.netns, since_ns)
    rise = _rise_since(before, drop)
    if is_tracked(drop.hop):
        return _race_or_rule(rise)
    if rise is not None and rise[1] == 0:
        return Refusal(RULE, HIGH, ["the conntrack counters of its CPU had not risen"])
    full = now is not None and _is_full(now)
    if full and (rise is None or rise[1]):
        evidence = [f"conntrack drop +{rise[1]} on this CPU since the last look"] if rise else []
        return Refusal(TABLE_FULL, HIGH if rise else MEDIUM, [*evidence, *_fill_words(now)])
    return Refusal(RULE, MEDIUM, ["a full connection table would look the same", *_fill_words(now)])


def _proof_of_a_rule(drop: PacketDrop) -> str:
    """What shows by itself that connection tracking had no hand in it."""
    hop, hook = drop.hop, drop.why.hook
    if is_confirmed(hop) or (is_tracked(hop) and hook not in AT_CONFIRMATION):
        return "it has its place in the connection table"
    if not is_tracked(hop) and hook is not None and hook not in BEFORE_THE_TABLE:
        return f"the connection table is not asked in {hook}"
    if hop.flags & COUNTERS and not hop.detail.stat_drop:
        return "connection tracking has dropped nothing on this CPU in this namespace, ever"
    return ""


def _race_or_rule(rise: tuple[int, int] | None) -> Refusal:
    if rise is None:
        return Refusal(RULE, MEDIUM, ["a race for the connection table would look the same"])
    if rise[0]:
        return Refusal(RACE, MEDIUM, [f"conntrack insert_failed +{rise[0]} on this CPU since the last look"])
    return Refusal(RULE, HIGH, ["the conntrack counters of its CPU had not risen"])


def _rise_since(before: NetnsCounters | None, drop: PacketDrop) -> tuple[int, int] | None:
    """Rise of insert_failed and drop on the packet's CPU since the namespace was last looked at."""
    detail = drop.hop.detail
    if before is None or not drop.hop.flags & COUNTERS or detail.cpu >= len(before.conntrack):
        return None
    old = before.conntrack[detail.cpu]
    return detail.stat_insert_failed - old.insert_failed, detail.stat_drop - old.drop


def _is_full(now: NetnsCounters) -> bool:
    entries, limit = now.conntrack_entries, now.conntrack_limit
    return bool(entries and limit and entries >= NEARLY_FULL * limit)


def _fill_words(now: NetnsCounters | None) -> list[str]:
    if now is None or now.conntrack_entries is None or now.conntrack_limit is None:
        return []
    return [f"{now.conntrack_entries} of {now.conntrack_limit} conntrack entries are in use"]
