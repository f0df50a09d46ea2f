"""The Messages field: the original requests and responses, with the key names of the dnstap tool's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agent.export.clock import rfc3339
from agent.hop.endpoint import address_to_text
from agent.hop.record import TCP, Event, Hop
from agent.session.outcome import CQ
from agent.session.strays import why_unusable
from agent.wire.render import render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.model import Message, Transmission
    from agent.session.outcome import Outcome

Ends = tuple[Hop | None, Hop | None]


class Seen(NamedTuple):
    """One message at one of its ends."""

    name: str
    """dnstap message type."""
    hop: Hop
    message: Message
    response: bool
    unusable: str | None = None
    """Of a reply that no client takes: why."""


def messages(outcome: Outcome, wall_offset_ns: int) -> list[dict[str, Any]]:
    """Every message of the session in the order of time; each distinct one is rendered once."""
    if outcome.session.connecting:
        return []
    seen = sorted((*_of_client(outcome), *_of_strays(outcome), *_of_upstream(outcome)), key=lambda end: end.hop.ts_ns)
    rendered: dict[int, dict[str, object]] = {}
    for end in seen:
        if id(end.message) not in rendered:
            rendered[id(end.message)] = render(end.message.payload, length_bytes=end.message.length_bytes)
    return [_message(end, rendered[id(end.message)], wall_offset_ns) for end in seen]


def _of_client(outcome: Outcome) -> Iterator[Seen]:
    for response, leg in ((False, outcome.session.queries), (True, outcome.session.replies)):
        names = ("CLIENT_RESPONSE", "STUB_RESPONSE") if response else ("STUB_QUERY", "CLIENT_QUERY")
        for transmission in leg.transmissions:
            ends = reply_ends(transmission, outcome) if response else query_ends(transmission, outcome)
            for name, hop in zip(names, ends, strict=True):
                if hop is not None:
                    yield Seen(name, hop, transmission.message, response)


def _of_strays(outcome: Outcome) -> Iterator[Seen]:
    """Replies that no client can use, to this lookup and to what its server asked."""
    for session, client, ends in (
        (outcome.session, outcome.client_netns, ("CLIENT_RESPONSE", "STUB_RESPONSE")),
        *((exchange, outcome.server_netns, ("FORWARDER_RESPONSE",)) for exchange in outcome.exchanges),
    ):
        for stray in session.strays.transmissions if session.strays is not None else ():
            hops = (
                (stray.hops[0], _arrival(stray, client))
                if len(ends) > 1
                else (_arrival(stray, client) or stray.hops[-1],)
            )
            for name, hop in zip(ends, hops, strict=True):
                if hop is not None:
                    yield Seen(
                        name, hop, stray.message, response=True, unusable=why_unusable(stray.message, session.key)
                    )


def _of_upstream(outcome: Outcome) -> Iterator[Seen]:
    """The server's own exchanges, as they left it and as they came to it."""
    for exchange in outcome.exchanges:
        if exchange.connecting:
            continue
        for query in exchange.queries.transmissions:
            yield Seen("FORWARDER_QUERY", query.hops[0], query.message, response=False)
        for reply in exchange.replies.transmissions:
            arrived = _arrival(reply, outcome.server_netns)
            if arrived is not None or reply.drop is None:
                yield Seen("FORWARDER_RESPONSE", arrived or reply.hops[-1], reply.message, response=True)


def query_ends(query: Transmission, outcome: Outcome) -> Ends:
    """Where it was a STUB_QUERY and where it became a CLIENT_QUERY."""
    sent = next((hop for hop in query.hops if hop.netns == outcome.client_netns), None)
    places = outcome.server_namespaces if outcome.bits & CQ else set()
    arrived = next((hop for netns in places for hop in query.arrivals(netns)), None)
    if outcome.server_netns is None and outcome.bits & CQ and query.hops[-1].event == Event.TX:
        arrived = query.hops[-1]
    return sent, arrived


def reply_ends(reply: Transmission, outcome: Outcome) -> Ends:
    """Where it was a CLIENT_RESPONSE and where it became a STUB_RESPONSE."""
    return reply.hops[0], _arrival(reply, outcome.client_netns)


def _arrival(transmission: Transmission, netns: int | None) -> Hop | None:
    return next(iter(transmission.arrivals(netns)), None) if netns is not None else None


def _message(seen: Seen, content: dict[str, object], wall_offset_ns: int) -> dict[str, Any]:
    detail = seen.hop.detail
    source, destination = (detail.saddr, detail.sport), (detail.daddr, detail.dport)
    query, answer = (destination, source) if seen.response else (source, destination)
    kind = "response" if seen.response else "query"
    content = content if seen.unusable is None else content | {"unusable": seen.unusable}
    return {
        "type": seen.name,
        "socket_family": family(seen.hop),
        "socket_protocol": protocol(seen.hop),
        "query_address": address_to_text(query[0]),
        "query_port": query[1],
        "response_address": address_to_text(answer[0]),
        "response_port": answer[1],
        f"{kind}_time": rfc3339(seen.hop.ts_ns + wall_offset_ns),
        f"{kind}_message": content,
    }


def family(hop: Hop) -> str:
    """SocketFamily of dnstap."""
    return "INET" if hop.family == 4 else "INET6"  # noqa: PLR2004  IP version


def protocol(hop: Hop) -> str:
    """SocketProtocol of dnstap, as far as port 53 goes."""
    return "TCP" if hop.protocol == TCP else "UDP"
