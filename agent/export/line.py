"""The session line: its fields, and how an outcome and its verdict fill them.

The structs are the field catalogue: JSON, JSON schema and `docs/fields.md` come from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from agent.context.counters import NullCounters
from agent.context.translation import translate
from agent.context.who import NOBODY
from agent.export.clock import SECOND_NS, rfc3339
from agent.export.messages import family, messages, protocol
from agent.hop.endpoint import address_to_text, endpoint_to_text
from agent.hop.record import Event, Flag, name_text
from agent.session.accepted import is_good
from agent.session.addressed import servers_asked
from agent.session.latency import arrived_upstream_ns, latency_of
from agent.session.outcome import CQ, SR, Bit
from agent.wire.message import extended_rcode, name_to_text
from agent.wire.render import opcode_to_text, rcode_to_text, rdclass_to_text, rdtype_to_text

if TYPE_CHECKING:
    from agent.context.who import Who
    from agent.explain.verdict import Cause, Verdict
    from agent.hop.record import Hop
    from agent.session.addressed import Asked
    from agent.session.model import Key, Session, Transmission
    from agent.session.outcome import Outcome

NULL_COUNTERS = NullCounters()


def doc(text: str) -> msgspec.Meta:
    """The description of a field."""
    return msgspec.Meta(description=text)


class Question(msgspec.Struct, rename="pascal"):
    """What was asked."""

    name: Annotated[str, doc("Name asked for, lower case, with the trailing dot; with --redact a word for it.")]
    type: Annotated[str, doc("Type as in the IANA registry; unknown ones as TYPE123 (RFC 3597).")]
    class_: Annotated[str, doc("Class as in the IANA registry.")] = msgspec.field(name="Class")


class Client(msgspec.Struct, rename="pascal"):
    """Who asked."""

    address: Annotated[str, doc("Before any translation.")]
    port: Annotated[int, doc("Before any translation.")]
    netns: Annotated[int | None, doc("Inode of its network namespace; null when it is not on this node.")]
    namespace: Annotated[str | None, doc("Kubernetes namespace.")] = None
    pod: Annotated[str | None, doc("Pod name.")] = None
    workload: Annotated[str | None, doc("Kind/name of what owns the pod.")] = None
    container: Annotated[str | None, doc("Container name.")] = None
    process: Annotated[str | None, doc("Program name; null when another task sent the packet for it.")] = None
    pid: Annotated[int | None, doc("Process id in the node's PID namespace.")] = None


class Server(msgspec.Struct, rename="pascal"):
    """Who was asked."""

    address: Annotated[str, doc("As the client addressed it.")]
    port: Annotated[int, doc("As the client addressed it.")]
    service: Annotated[str | None, doc("Service of that address.")] = None
    backend: Annotated[str | None, doc("address:port it was translated to; null when it was not translated.")] = None
    backend_netns: Annotated[int | None, doc("Inode of the server's network namespace; null beyond this node.")] = None
    namespace: Annotated[str | None, doc("Kubernetes namespace of the server's pod.")] = None
    pod: Annotated[str | None, doc("Pod name of the server.")] = None
    translated_by: Annotated[
        str | None, doc("conntrack, ipvs, program, socket, tproxy, none (not at all); null when it is not known.")
    ] = None
    process: Annotated[str | None, doc("Program that replied.")] = None
    pid: Annotated[int | None, doc("Its process id in the node's PID namespace.")] = None


class CauseLine(msgspec.Struct, rename="pascal"):
    """Why."""

    code: Annotated[str, doc("Stable code, see docs/causes.md.")]
    confidence: Annotated[str, doc("high, medium or low.")]
    message: Annotated[str, doc("One sentence for people.")]
    evidence: Annotated[list[str], doc("What spoke for it.")]
    remedy: Annotated[str, doc("What to do.")]
    doc: Annotated[str, doc("Where it is explained.")]


class Connection(msgspec.Struct, rename="pascal"):
    """How the TCP connection of the lookup went."""

    syn_retransmissions: Annotated[int, doc("How often the client asked again for the connection.")]
    refused: Annotated[bool, doc("The server answered the first packet with RST.")]
    reset_by: Annotated[str | None, doc("client or server: who ended it with RST.")]
    closed_by: Annotated[str | None, doc("client or server: who ended it with FIN first.")]


class Exchange(msgspec.Struct, rename="pascal"):
    """One question of the server to an upstream."""

    address: Annotated[str, doc("The upstream, as the server addressed it.")]
    port: int
    protocol: Annotated[str, doc("UDP or TCP.")]
    transaction_id: Annotated[int, doc("DNS message id on that leg.")]
    name: Annotated[str | None, doc("Name asked for; null when not even the TCP connection came about.")]
    rcode: Annotated[str | None, doc("Of its reply; null without one.")]
    refused: Annotated[bool, doc("The upstream answered the request for a TCP connection with RST.")]
    offset_seconds: Annotated[float, doc("Since Time.")]
    duration_seconds: Annotated[float | None, doc("Until its reply came to the server; null without one.")]


class Parent(msgspec.Struct, rename="pascal"):
    """The lookup that this one was made for, by a server on this node."""

    client: Annotated[str, doc("address:port of its client.")]
    transaction_id: Annotated[int, doc("Its DNS message id.")]
    name: Annotated[str, doc("Name that was asked for.")]


class Latency(msgspec.Struct, rename="pascal"):
    """Seconds spent on each leg; null when one end of it was not seen."""

    client_to_server: Annotated[float | None, doc("Query: client's socket to the server's namespace.")]
    server: Annotated[float | None, doc("Query taken in to reply sent.")]
    upstream: Annotated[float | None, doc("Of that, waiting for upstreams.")]
    server_to_client: Annotated[float | None, doc("Reply: server's socket to the client's namespace.")]


class HopLine(msgspec.Struct, rename="pascal", omit_defaults=True):
    """One hop of a message, or its drop."""

    message: Annotated[str | None, doc("dnstap message type at that point; null for the handshake of a connection.")]
    event: Annotated[str, doc("tx, rx or drop.")]
    offset_seconds: Annotated[float, doc("Since Time.")]
    netns: Annotated[int, doc("Inode of the network namespace.")]
    interface: Annotated[str, doc("Device; empty when the packet had none yet.")]
    source: Annotated[str, doc("address:port as it was there.")]
    destination: Annotated[str, doc("address:port as it was there.")]
    reason: Annotated[str | None, doc("Only drops: the kernel's drop reason.")] = None
    location: Annotated[str | None, doc("Only drops: the kernel function that freed it.")] = None
    hook: Annotated[str | None, doc("Only drops: the netfilter hook.")] = None


class Line(msgspec.Struct, rename="pascal"):
    """One session."""

    time: Annotated[str, doc("First hop, UTC, RFC 3339 with nanoseconds.")]
    node: Annotated[str, doc("Name of this node.")]
    vantage: Annotated[str | None, doc("Ends of the session on this node: client, server, both; null in transit.")]
    status: Annotated[str, doc("Succeeded, Failed or SampleLoss.")]
    bit_map: Annotated[int, doc("CQ=1, CR=2, FQ=4, FR=8, as on the wire.")]
    dnstap_bit_map: Annotated[int, doc("BitMap as CoreDNS's dnstap plugin would show it.")]
    path_bit_map: Annotated[int, doc("BitMap + SQ=16 + SR=32 + query dropped=64 + reply dropped=128.")]
    inferred: Annotated[list[str], doc("Bits of PathBitMap that no hop showed, but that must have happened.")]
    question: Annotated[Question | None, doc("What was asked; null for a TCP connection that failed before it was.")]
    opcode: Annotated[
        str | None, doc("QUERY, or UPDATE, NOTIFY, … : what was asked for; null for a failed TCP connection.")
    ]
    protocol: Annotated[str, doc("UDP or TCP.")]
    family: Annotated[str, doc("INET or INET6.")]
    transaction_id: Annotated[int | None, doc("DNS message id of the query; null where there was none yet.")]
    rcode: Annotated[str | None, doc("Of the reply, extended where EDNS carries it; null without a reply.")]
    answer_source: Annotated[str | None, doc("local, cache, forward or server-error, by the reply's flags.")]
    duration_seconds: Annotated[float | None, doc("First query to last hop of the reply.")]
    client: Client
    server: Server
    attempts: Annotated[int, doc("How often the client sent the query.")]
    cause: CauseLine | None
    connection: Connection | None
    upstream: Annotated[list[Exchange], doc("What the server asked upstream for it, each attempt by itself.")]
    upstream_of: Parent | None
    findings: Annotated[list[str], doc("Remarks that do not change the status.")]
    remarks: Annotated[list[str], doc("Sentences of those findings that have more to say than their name.")]
    latency: Latency
    path: list[HopLine]
    messages: Annotated[list[dict[str, Any]], doc("Every message, with the keys of the dnstap tool's JSON.")]
    held_back: Annotated[
        int, doc("Lines of failures like this one that were not printed since the last one: --failure-rate.")
    ] = 0


class Context(NamedTuple):
    """What the line says beside the session itself."""

    node: str
    wall_offset_ns: int
    """Added to the hops' stamps to get UTC."""


def build(
    outcome: Outcome, verdict: Verdict, context: Context, who: Who = NOBODY, *, with_messages: bool = True
) -> Line:
    """The line of a closed session; without its messages it costs much less."""
    session = outcome.session
    key = session.key
    first = next(iter(_all(outcome))).hops[0]
    return Line(
        time=rfc3339(session.first_ns + context.wall_offset_ns),
        node=context.node,
        vantage=outcome.vantage,
        status=outcome.status.value,
        bit_map=int(outcome.bitmap),
        dnstap_bit_map=int(outcome.dnstap_bitmap),
        path_bit_map=int(outcome.path),
        inferred=[bit.name or "" for bit in Bit(outcome.inferred)],
        question=None if session.connecting else _question(key),
        opcode=None if session.connecting else opcode_to_text(next(iter(_all(outcome))).message.summary.opcode),
        protocol=protocol(first),
        family=family(first),
        transaction_id=None if session.connecting else key.id,
        rcode=None if outcome.rcode is None else rcode_to_text(outcome.rcode),
        answer_source=outcome.answer_source,
        duration_seconds=_seconds(outcome.duration_ns),
        client=_client(outcome, who),
        server=_server(outcome, who),
        attempts=outcome.attempts,
        cause=_cause(verdict.cause) if verdict.cause else None,
        connection=_connection(outcome),
        upstream=[
            _exchange(exchange, asked, outcome) for exchange in outcome.exchanges for asked in servers_asked(exchange)
        ],
        upstream_of=_parent(outcome.session.upstream_of),
        findings=verdict.findings,
        remarks=verdict.remarks,
        latency=_latency(outcome),
        path=_path(outcome),
        messages=messages(outcome, context.wall_offset_ns) if with_messages else [],
    )


def _cause(cause: Cause) -> CauseLine:
    return CauseLine(cause.code, cause.confidence, cause.text, cause.evidence, cause.remedy, cause.doc)


def _question(key: Key) -> Question:
    return Question(name_to_text(key.name), rdtype_to_text(key.rdtype), rdclass_to_text(key.rdclass))


def _all(outcome: Outcome) -> list[Transmission]:
    return [*outcome.session.queries.transmissions, *outcome.session.replies.transmissions]


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / SECOND_NS


def _client(outcome: Outcome, who: Who) -> Client:
    endpoint, pod = outcome.session.key.client, who.client
    name, pid = _process(outcome.session.queries.transmissions)
    return Client(
        address_to_text(endpoint.address),
        endpoint.port,
        outcome.client_netns,
        namespace=pod.namespace if pod else None,
        pod=pod.name if pod else None,
        workload=pod.workload if pod else None,
        container=who.container,
        process=name,
        pid=pid,
    )


def _process(transmissions: list[Transmission]) -> tuple[str | None, int | None]:
    origins = (transmission.origin for transmission in transmissions)
    known = next((hop.detail for hop in origins if hop is not None and hop.flags & Flag.PROCESS), None)
    return (name_text(known.comm), known.tgid) if known else (None, None)


def _server(outcome: Outcome, who: Who) -> Server:
    found = who.translation or translate(outcome, NULL_COUNTERS)
    address, port = found.virtual if found else outcome.server
    name, pid = _process([outcome.reply] if outcome.reply else [])
    pod, service = who.server, who.service
    return Server(
        address_to_text(address),
        port,
        service=f"{service.namespace}/{service.name}" if service else None,
        backend=endpoint_to_text(*found.backend) if found and found.backend != found.virtual else None,
        backend_netns=outcome.server_netns,
        namespace=pod.namespace if pod else None,
        pod=pod.name if pod else None,
        translated_by=found.by if found else None,
        process=name,
        pid=pid,
    )


def _connection(outcome: Outcome) -> Connection | None:
    if outcome.session.connection is None:
        return None
    facts = outcome.session.connection.facts
    refused = facts.refused or outcome.session.refused
    return Connection(facts.syn_retransmissions, refused, facts.reset_by, facts.fin_by)


def _exchange(exchange: Session, asked: Asked, outcome: Outcome) -> Exchange:
    sent = asked.queries[0].hops[0]
    reply = next(filter(is_good, asked.replies), next(iter(asked.replies), None))
    duration_ns = arrived_upstream_ns(reply, outcome) - sent.ts_ns if reply else None
    return Exchange(
        address=address_to_text(asked.server.address),
        port=asked.server.port,
        protocol=protocol(sent),
        transaction_id=exchange.key.id,
        name=None if exchange.connecting else name_to_text(exchange.key.name),
        rcode=_rcode(reply) if reply and not exchange.connecting else None,
        refused=exchange.refused,
        offset_seconds=(sent.ts_ns - outcome.session.first_ns) / SECOND_NS,
        duration_seconds=_seconds(duration_ns),
    )


def _rcode(reply: Transmission) -> str:
    return rcode_to_text(extended_rcode(reply.message.payload, reply.message.summary))


def _parent(key: Key | None) -> Parent | None:
    return Parent(endpoint_to_text(*key.client), key.id, name_to_text(key.name)) if key else None


def _latency(outcome: Outcome) -> Latency:
    return Latency(*map(_seconds, latency_of(outcome)))


def _path(outcome: Outcome) -> list[HopLine]:
    legs = (outcome.session.queries, outcome.session.replies)
    hops: list[tuple[Hop, str | None]] = [
        (hop, _message_type(hop, transmission, outcome, response=direction is outcome.session.replies))
        for direction in legs
        for transmission in direction.transmissions
        for hop in transmission.hops
    ]
    if outcome.session.strays is not None:
        hops += [
            (hop, _message_type(hop, stray, outcome, response=True))
            for stray in outcome.session.strays.transmissions
            for hop in stray.hops
        ]
    for exchange in outcome.exchanges:
        for name, direction in (("FORWARDER_QUERY", exchange.queries), ("FORWARDER_RESPONSE", exchange.replies)):
            named = None if exchange.connecting else name
            hops += [(hop, named) for transmission in direction.transmissions for hop in transmission.hops]
    hops.sort(key=lambda item: item[0].ts_ns)
    return [_hop(hop, name, outcome) for hop, name in hops]


def _hop(hop: Hop, name: str | None, outcome: Outcome) -> HopLine:
    detail = hop.detail
    drop = outcome.drop_of(hop) if hop.event == Event.DROP else None
    return HopLine(
        message=name,
        event=Event(hop.event).name.lower(),
        offset_seconds=(hop.ts_ns - outcome.session.first_ns) / SECOND_NS,
        netns=hop.netns,
        interface=name_text(detail.ifname),
        source=endpoint_to_text(detail.saddr, detail.sport),
        destination=endpoint_to_text(detail.daddr, detail.dport),
        reason=drop.reason if drop else None,
        location=drop.location if drop else None,
        hook=drop.hook if drop else None,
    )


def _message_type(hop: Hop, transmission: Transmission, outcome: Outcome, *, response: bool) -> str | None:
    """The dnstap name of the message from here on: it changes when it gets to the other end."""
    if outcome.session.connecting:
        return None
    ends = {outcome.client_netns} if response else outcome.server_namespaces
    arrived = any(arrival.ts_ns <= hop.ts_ns for end in ends for arrival in transmission.arrivals(end))
    if response:
        return "STUB_RESPONSE" if arrived and outcome.bits & SR else "CLIENT_RESPONSE"
    return "CLIENT_QUERY" if arrived and outcome.bits & CQ else "STUB_QUERY"
