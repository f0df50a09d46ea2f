"""The Messages field: the original requests and responses, with the key names of the dnstap tool's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.export.clock import rfc3339
from agent.session.outcome import Bit
from agent.session.sighting import Event, Sighting, address_to_text
from agent.wire.render import render

if TYPE_CHECKING:
    from agent.session.model import Transmission, Wire
    from agent.session.outcome import Outcome

Ends = tuple[Sighting | None, Sighting | None]


def messages(outcome: Outcome, wall_offset_ns: int) -> list[dict[str, Any]]:
    """Every message of the session in the order of time; each distinct one is rendered once."""
    seen: list[tuple[int, dict[str, Any]]] = []
    rendered: dict[Wire, dict[str, object]] = {}
    for response, leg in ((False, outcome.session.queries), (True, outcome.session.replies)):
        for one in leg.transmissions:
            content = rendered.get(one.wire) or rendered.setdefault(one.wire, _render(one.wire))
            ends = reply_ends(one, outcome) if response else query_ends(one, outcome)
            names = ("CLIENT_RESPONSE", "STUB_RESPONSE") if response else ("STUB_QUERY", "CLIENT_QUERY")
            for name, hop in zip(names, ends, strict=True):
                if hop is not None:
                    seen.append((hop.ts_ns, _message(name, hop, content, wall_offset_ns, response=response)))
    seen.sort(key=lambda item: item[0])
    return [message for _, message in seen]


def _render(wire: Wire) -> dict[str, object]:
    return render(wire.payload, length_bytes=wire.length_bytes)


def query_ends(query: Transmission, outcome: Outcome) -> Ends:
    """Where it was a STUB_QUERY and where it became a CLIENT_QUERY."""
    sent = next((hop for hop in query.hops if hop.netns == outcome.client_netns), None)
    arrived = _arrival(query, outcome.server_netns) if Bit.CQ in outcome.path else None
    if outcome.server_netns is None and Bit.CQ in outcome.path and query.hops[-1].event == Event.TX:
        arrived = query.hops[-1]
    return sent, arrived


def reply_ends(reply: Transmission, outcome: Outcome) -> Ends:
    """Where it was a CLIENT_RESPONSE and where it became a STUB_RESPONSE."""
    return reply.hops[0], _arrival(reply, outcome.client_netns)


def _arrival(one: Transmission, netns: int | None) -> Sighting | None:
    return next(iter(one.arrivals(netns)), None) if netns is not None else None


def _message(
    name: str, hop: Sighting, content: dict[str, object], wall_offset_ns: int, *, response: bool
) -> dict[str, Any]:
    detail = hop.detail
    source, destination = (detail.saddr, detail.sport), (detail.daddr, detail.dport)
    query, answer = (destination, source) if response else (source, destination)
    kind = "response" if response else "query"
    return {
        "type": name,
        "socket_family": "INET" if hop.family == 4 else "INET6",  # noqa: PLR2004  IP version
        "socket_protocol": "UDP",
        "query_address": address_to_text(query[0]),
        "query_port": query[1],
        "response_address": address_to_text(answer[0]),
        "response_port": answer[1],
        f"{kind}_time": rfc3339(hop.ts_ns + wall_offset_ns),
        f"{kind}_message": content,
    }
