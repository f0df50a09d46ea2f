"""Packets that the kernel dropped: which rule, program, socket, device or check refused them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.explain import netfilter
from agent.explain.causes import LEG_WORDS
from agent.explain.endpoints import SAME, may_have_no_endpoints
from agent.explain.evidence import (
    drop_words,
    interface,
    place,
    rise_between,
    rise_words,
    where,
)
from agent.explain.rule_input import QUERIES, RuleInput
from agent.explain.signatures import PROGRAMS, QUEUE_LOCATIONS, WORDS, XDP_LOCATIONS, confidence_in, link_is_down
from agent.explain.verdict import HIGH, MEDIUM, Cause, make_cause
from agent.hop.endpoint import address_to_text
from agent.hop.record import FRAGMENT, RX
from agent.session.outcome import Leg

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.hop.record import Detail
    from agent.session.outcome import PacketDrop

UDP_ERRORS = ("RcvbufErrors", "MemErrors")
NO_PROXY = (
    "in this hook a TPROXY rule drops a packet if it finds no socket for it: a DNS proxy that is gone looks the same"
)


def refused_by_netfilter(code: str) -> Callable[[RuleInput], Cause | None]:
    """A rule for one of the reasons why a netfilter hook drops packets."""

    def rule(given: RuleInput) -> Cause | None:
        for drop in given.drops:
            found = netfilter.refusal(drop, given.namespaces, given.outcome.session.first_ns)
            if found is not None and found.code == code:
                evidence, confidence = [drop_words(drop), *found.evidence], found.confidence
                if code == netfilter.RULE and drop.why.hook == "PREROUTING" and drop.leg in QUERIES:
                    evidence.append(NO_PROXY)
                    if given.outcome.node_state.takers.has_proxy(drop.hop.netns):
                        confidence = MEDIUM
                if code == netfilter.RULE and may_have_no_endpoints(given, drop):
                    evidence, confidence = [*evidence, SAME], MEDIUM
                return make_cause(
                    code,
                    confidence,
                    evidence,
                    drop=drop,
                    mechanism=_rule(drop),
                )
        return None

    return rule


def _rule(drop: PacketDrop) -> str:
    by = "nftables, " if (drop.why.location or "").startswith("nft_do_chain") else ""
    return f"netfilter rule ({by}{drop.why.hook or 'unknown hook'})"


def program_said_no(given: RuleInput) -> Cause | None:
    """A tc, XDP or cgroup program, where the kernel shows that by its own reason or place."""
    for drop in given.drops:
        mechanism = PROGRAMS.get(drop.why.reason or "")
        if drop.why.location in XDP_LOCATIONS:
            mechanism = "XDP program"
        elif drop.why.location in QUEUE_LOCATIONS:
            mechanism = "netfilter rule (NFQUEUE: its program refused it or was not there)"
        if mechanism:
            evidence = [drop_words(drop)]
            return make_cause("PolicyDrop", HIGH, evidence, mechanism=mechanism, drop=drop)
    return None


def server_socket_overflow(given: RuleInput) -> Cause | None:
    """What was sent to the server, and found its socket's receive buffer full."""
    return _socket_overflow(given, "ServerSocketOverflow", (Leg.QUERY, Leg.UPSTREAM_REPLY))


def client_socket_overflow(given: RuleInput) -> Cause | None:
    """A reply that found the client's receive buffer full."""
    return _socket_overflow(given, "ClientSocketOverflow", (Leg.REPLY,))


def _socket_overflow(given: RuleInput, code: str, legs: tuple[Leg, ...]) -> Cause | None:
    for drop in given.drops:
        confidence = confidence_in("SocketOverflow", drop.why)
        if confidence is not None and drop.leg in legs:
            evidence = [drop_words(drop), *_buffer_words(drop), *_udp_words(given, drop)]
            return make_cause(code, confidence, evidence, drop=drop)
    return None


def _buffer_words(drop: PacketDrop) -> list[str]:
    detail = drop.hop.detail
    if not detail.socket_rcvbuf:
        return []
    return [f"{detail.socket_rmem} of {detail.socket_rcvbuf} bytes of the socket's receive buffer are in use"]


def _udp_words(given: RuleInput, drop: PacketDrop) -> list[str]:
    before, now = given.namespaces.counters(drop.hop.netns, given.outcome.session.first_ns)
    if before is None or now is None:
        return []
    rose = {name: now.udp.get(name, 0) - before.udp.get(name, 0) for name in UDP_ERRORS}
    return [f"UDP {name} of that namespace +{value} since" for name, value in rose.items() if value]


def no_listener(given: RuleInput) -> Cause | None:
    """The kernel found no socket for it, here or where the ICMP error comes from. Over TCP its RST says the same."""
    outcome = given.outcome
    if outcome.session.refused:
        detail = outcome.session.queries.transmissions[-1].hops[-1].detail
        return _nothing_at(detail, ["RST answered the request for a connection"], leg=Leg.QUERY)
    for drop in given.drops:
        if drop.leg in QUERIES and drop.why.no_socket:
            return _nothing_at(drop.hop.detail, [drop_words(drop)], drop=drop)
    return None


def _nothing_at(
    detail: Detail, evidence: list[str], *, drop: PacketDrop | None = None, leg: Leg | None = None
) -> Cause:
    address = address_to_text(detail.daddr)
    return make_cause("NoListener", HIGH, evidence, drop=drop, leg=leg, address=address, port=detail.dport)


def interface_down(given: RuleInput) -> Cause | None:
    """The device refused it for want of a carrier, or is switched off."""
    for drop in given.drops:
        queue, down = (confidence_in(code, drop.why) for code in ("QueueOverflow", "InterfaceDown"))
        if (queue is not None and link_is_down(drop)) or down is not None:
            evidence = [drop_words(drop), "the device has no carrier or is not up"]
            hop = drop.hop
            return make_cause(
                "InterfaceDown",
                queue or down or MEDIUM,
                evidence,
                interface=interface(hop),
                place=f"network namespace {hop.netns}",
                drop=drop,
            )
    return None


def damaged(given: RuleInput) -> Cause | None:
    """Connection tracking called a query invalid and did not translate it, whatever became of it then."""
    for query in given.outcome.session.queries.transmissions:
        for before, after in zip(query.hops, query.hops[1:], strict=False):
            rise = rise_between(before, after)
            invalid = rise is not None and rise.invalid and before.event == RX
            if rise is not None and invalid and _got_nowhere(given):
                evidence = [rise_words(rise), f"not translated: {where(after)}"]
                return make_cause("ChecksumError", MEDIUM, evidence, leg=Leg.QUERY, place=place(before))
    return None


def _got_nowhere(given: RuleInput) -> bool:
    """Whether it did not come to the address it was sent to: what does so needed no translation."""
    node_state = given.outcome.node_state
    ends = [drop.hop for drop in given.drops if drop.leg is Leg.QUERY]
    return not given.outcome.delivered and not any(node_state.owns(hop.netns, hop.detail.daddr) for hop in ends)


def fragments_missing(given: RuleInput) -> Cause | None:
    """Nobody says why: the first fragment was captured, and what makes the datagram whole never was."""
    for drop in given.drops:
        if drop.hop.flags & FRAGMENT and not drop.why.reason and not drop.why.location:
            detail = drop.hop.detail
            message, source = LEG_WORDS[drop.leg], address_to_text(detail.saddr)
            evidence = [
                f"a fragment of the {message} from {source} was seen, and not all others",
                f"the {message} had {detail.payload_bytes} bytes",
            ]
            return make_cause("FragmentLost", MEDIUM, evidence, drop=drop, place=address_to_text(detail.daddr))
    return None


def kernel_says(code: str) -> Callable[[RuleInput], Cause | None]:
    """A rule for a code that the kernel's own words stand for."""

    def rule(given: RuleInput) -> Cause | None:
        for drop in given.drops:
            confidence = confidence_in(code, drop.why)
            if confidence is not None:
                return make_cause(code, confidence, [drop_words(drop)], drop=drop, **_ends(drop))
        return None

    return rule


def _ends(drop: PacketDrop) -> dict[str, Any]:
    detail = drop.hop.detail
    return {"source": address_to_text(detail.saddr), "destination": address_to_text(detail.daddr)}


def kernel_drop(given: RuleInput) -> Cause | None:
    """Any other drop, named."""
    for drop in given.drops:
        why = drop.why
        reason = f"{why.reason or 'no reason given'} in {why.location or 'a function whose name is hidden'}"
        if why.hook:
            reason += f", netfilter hook {why.hook}"
        known = WORDS.get(why.reason or "")
        reason = f"{known} ({reason})" if known else reason
        confidence = HIGH if known else MEDIUM
        return make_cause("KernelDrop", confidence, [drop_words(drop)], drop=drop, reason=reason)
    return None
