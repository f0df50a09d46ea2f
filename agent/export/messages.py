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
    seen = sorted((*_of_client(outcome), *_of_strays(outcome), *_of_upstream(outcome)), key=lambda one: one.hop.ts_ns)
    rendered: dict[int, dict[str, object]] = {}
    for one in seen:
        if id(one.message) not in rendered:
            rendered[id(one.message)] = render(one.message.payload, length_bytes=one.message.length_bytes)
    return [_message(one, rendered[id(one.message)], wall_offset_ns) for one in seen]


def _of_client(outcome: Outcome) -> Iterator[Seen]:
    for response, leg in ((False, outcome.session.queries), (True, outcome.session.replies)):
        names = ("CLIENT_RESPONSE", "STUB_RESPONSE") if response else ("STUB_QUERY", "CLIENT_QUERY")
        for one in leg.transmissions:
            ends = reply_ends(one, outcome) if response else query_ends(one, outcome)
            for name, hop in zip(names, ends, strict=True):
                if hop is not None:
                    yield Seen(name, hop, one.message, response)


def _of_strays(outcome: Outcome) -> Iterator[Seen]:
    """Replies that no client can use, to this lookup and to what its server asked."""
    for session, client, ends in (
        (outcome.session, outcome.client_netns, ("CLIENT_RESPONSE", "STUB_RESPONSE")),
        *((one, outcome.server_netns, ("FORWARDER_RESPONSE",)) for one in outcome.exchanges),
    ):
        for one in session.strays.transmissions if session.strays is not None else ():
            hops = (one.hops[0], _arrival(one, client)) if len(ends) > 1 else (_arrival(one, client) or one.hops[-1],)
            for name, hop in zip(ends, hops, strict=True):
                if hop is not None:
                    yield Seen(name, hop, one.message, response=True, unusable=why_unusable(one.message, session.key))


def _of_upstream(outcome: Outcome) -> Iterator[Seen]:
    """The server's own exchanges, as they left it and as they came to it."""
    for exchange in outcome.exchanges:
        if exchange.connecting:
            continue
        for one in exchange.queries.transmissions:
            yield Seen("FORWARDER_QUERY", one.hops[0], one.message, response=False)
        for one in exchange.replies.transmissions:
            arrived = _arrival(one, outcome.server_netns)
            if arrived is not None or one.drop is None:
                yield Seen("FORWARDER_RESPONSE", arrived or one.hops[-1], one.message, response=True)


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


def _arrival(one: Transmission, netns: int | None) -> Hop | None:
    return next(iter(one.arrivals(netns)), None) if netns is not None else None


def _message(one: Seen, content: dict[str, object], wall_offset_ns: int) -> dict[str, Any]:
    detail = one.hop.detail
    source, destination = (detail.saddr, detail.sport), (detail.daddr, detail.dport)
    query, answer = (destination, source) if one.response else (source, destination)
    kind = "response" if one.response else "query"
    content = content if one.unusable is None else content | {"unusable": one.unusable}
    return {
        "type": one.name,
        "socket_family": family(one.hop),
        "socket_protocol": protocol(one.hop),
        "query_address": address_to_text(query[0]),
        "query_port": query[1],
        "response_address": address_to_text(answer[0]),
        "response_port": answer[1],
        f"{kind}_time": rfc3339(one.hop.ts_ns + wall_offset_ns),
        f"{kind}_message": content,
    }


def family(hop: Hop) -> str:
    """SocketFamily of dnstap."""
    return "INET" if hop.family == 4 else "INET6"  # noqa: PLR2004  IP version


def protocol(hop: Hop) -> str:
    """SocketProtocol of dnstap, as far as port 53 goes."""
    return "TCP" if hop.protocol == TCP else "UDP"
