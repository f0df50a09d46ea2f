"""What a rule has to go by, and how it is put in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import address_to_text
from agent.hop.record import CONNTRACK, COUNTERS, Event, Hop, name_text
from agent.session.model import SECOND_NS
from agent.session.outcome import Leg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.outcome import Outcome, PacketDrop

EVENT_WORDS = {Event.TX: "leaving by", Event.RX: "arriving at", Event.DROP: "dropped at"}
CONFIRMED = 8
"""enum ip_conntrack_status, IPS_CONFIRMED: the entry is in the table."""
CARRIER_LOST = 1 << 2
"""enum netdev_state_t, __LINK_STATE_NOCARRIER."""
STARTED = 1 << 0
"""enum netdev_state_t, __LINK_STATE_START: the device is up."""
U32 = 1 << 32
MILLISECOND_NS = 1_000_000


class Rise(NamedTuple):
    """By how much one CPU's conntrack counters rose while a packet was on it."""

    invalid: int
    insert_failed: int
    drop: int


def rise_between(before: Hop, after: Hop) -> Rise | None:
    """What this CPU counted between two hops of one packet; None where that is not known."""
    if not before.flags & after.flags & COUNTERS or before.netns != after.netns:
        return None
    old, new = before.detail, after.detail
    if old.cpu != new.cpu:
        return None
    return Rise(
        (new.stat_invalid - old.stat_invalid) % U32,
        (new.stat_insert_failed - old.stat_insert_failed) % U32,
        (new.stat_drop - old.stat_drop) % U32,
    )


def rise_until(drop: PacketDrop) -> Rise | None:
    """What the CPU counted from the packet's last hop before its drop in the same namespace."""
    return next((rise for hop in reversed(drop.before) if (rise := rise_between(hop, drop.hop)) is not None), None)


def is_tracked(hop: Hop) -> bool:
    """Whether the packet had a conntrack entry."""
    return bool(hop.flags & CONNTRACK)


def is_confirmed(hop: Hop) -> bool:
    """Whether that entry had got into the table before."""
    return is_tracked(hop) and bool(hop.detail.ct_status & CONFIRMED)


def is_translated(hop: Hop) -> bool:
    """Whether its entry says another destination than the one it was sent to."""
    detail = hop.detail
    return is_tracked(hop) and (detail.ct_original_daddr, detail.ct_original_dport) != (
        detail.ct_reply_saddr,
        detail.ct_reply_sport,
    )


def drops(outcome: Outcome) -> list[PacketDrop]:
    """The losses that matter to this client."""
    own = [drop for drop in (outcome.query_drop, outcome.reply_drop) if drop is not None]
    if outcome.delivered and came_too_late(outcome):
        # The slower of several servers, or the second answer to a repeated query: the client had what it wanted.
        own = [drop for drop in own if drop.leg is Leg.QUERY]
    return own + _upstream_drops(outcome)


def _upstream_drops(outcome: Outcome) -> list[PacketDrop]:
    """A server that lost an attempt and answered well all the same needs no explanation.

    Nor does a reply that came when the server had given up: what made it late is the cause.
    """
    drop = outcome.upstream_drop
    if drop is None or (outcome.healthy and not lost_attempt(outcome)):
        return []
    return [] if drop.why.no_socket and drop.hop.netns == outcome.server_netns else [drop]


def lost_attempt(outcome: Outcome) -> bool:
    """Whether the client sent the query more often than it was answered: an attempt was lost somewhere."""
    if outcome.repeats <= 1 or outcome.lossy or outcome.session.reply_cut:
        return False
    return outcome.repeats > len(outcome.session.replies.transmissions)


def came_too_late(outcome: Outcome) -> bool:
    """Whether the reply that died did so for want of the client's socket, or of a program behind it."""
    drop = outcome.reply_drop
    if drop is None or drop.hop.netns != outcome.client_netns:
        return False
    return drop.why.unwanted


def duration_words(ns: int) -> str:
    """A time for a sentence."""
    return f"{ns / SECOND_NS:.3f} s" if ns >= SECOND_NS else f"{ns / MILLISECOND_NS:.1f} ms"


def interface(hop: Hop) -> str:
    """The device's name."""
    return name_text(hop.detail.ifname) or (f"device {hop.ifindex}" if hop.ifindex else "no device yet")


def place(hop: Hop) -> str:
    """Where a hop is, for a sentence."""
    return f"network namespace {hop.netns} ({interface(hop)})"


def where(hop: Hop) -> str:
    """What happened at a hop, for evidence."""
    return f"{EVENT_WORDS[Event(hop.event)]} {interface(hop)} in network namespace {hop.netns}"


def drop_words(drop: PacketDrop) -> str:
    """What the kernel said of a drop."""
    why = drop.why
    words = [f"kfree_skb reason {why.reason or 'unknown'}", f"location {why.location or 'unknown'}"]
    if why.hook:
        words.append(f"hook {why.hook}")
    return f"{', '.join(words)}; {where(drop.hop)}"


def rise_words(rise: Rise) -> str:
    """What the counters say."""
    rose = [f"{name} +{value}" for name, value in rise._asdict().items() if value]
    return f"this CPU's conntrack counters since the hop before: {', '.join(rose) or 'unchanged'}"


def icmp_words(error: Hop) -> str:
    """An ICMP error as evidence."""
    detail = error.detail
    mtu = f", MTU {detail.icmp_mtu}" if detail.icmp_mtu and (detail.icmp_type, detail.icmp_code) in TOO_BIG else ""
    name = ICMP_NAMES.get((error.family, detail.icmp_type, detail.icmp_code), "error")
    return f"ICMP {name} ({detail.icmp_type}/{detail.icmp_code}) from {address_to_text(detail.icmp_saddr)}{mtu}"


TOO_BIG = frozenset({(3, 4), (2, 0)})
ICMP_NAMES = {
    (4, 3, 0): "network unreachable",
    (4, 3, 1): "host unreachable",
    (4, 3, 2): "protocol unreachable",
    (4, 3, 3): "port unreachable",
    (4, 3, 4): "fragmentation needed",
    (4, 3, 9): "network administratively prohibited",
    (4, 3, 10): "host administratively prohibited",
    (4, 3, 13): "communication administratively prohibited",
    (4, 11, 0): "time to live exceeded",
    (4, 11, 1): "fragment reassembly time exceeded",
    (6, 1, 0): "no route to destination",
    (6, 1, 1): "communication administratively prohibited",
    (6, 1, 3): "address unreachable",
    (6, 1, 4): "port unreachable",
    (6, 1, 5): "source address failed policy",
    (6, 1, 6): "reject route to destination",
    (6, 2, 0): "packet too big",
    (6, 3, 0): "hop limit exceeded",
    (6, 3, 1): "fragment reassembly time exceeded",
}
"""RFC 792, RFC 1812 5.2.7, RFC 4443 3: by IP version, type and code."""


def errors(outcome: Outcome) -> Iterator[Hop]:
    """ICMP errors about the lookup, then about what its server asked."""
    yield from outcome.session.errors
    if not outcome.healthy:
        for exchange in outcome.exchanges:
            yield from exchange.errors
