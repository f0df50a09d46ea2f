"""The incident line: its fields, and how an account of an incident fills them.

As with the session line, the structs are the field catalogue: JSON and `docs/fields.md` come from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from agent.export.clock import rfc3339
from agent.export.line import doc

if TYPE_CHECKING:
    from agent.explain.incident_key import Asked, Party
    from agent.explain.incidents import Account
    from agent.export.line import Context

KIND = "Incident"
MAX_BYTES = 8 << 10
"""No incident line is longer: names of Kubernetes have 253 bytes at most (RFC 1123), and there are three examples."""


class ClientNames(msgspec.Struct, rename="pascal"):
    """Whose lookups fail; null when they are of several."""

    namespace: Annotated[str | None, doc("Kubernetes namespace.")] = None
    workload: Annotated[str | None, doc("Kind/name of what owns the pods.")] = None
    pod: Annotated[str | None, doc("Pod name, of a pod that nothing owns.")] = None
    address: Annotated[str | None, doc("Address, where no name is known.")] = None


class ServerNames(msgspec.Struct, rename="pascal"):
    """Who was asked; null when they asked several addresses."""

    address: Annotated[str, doc("address:port as the clients addressed it.")]
    backend: Annotated[str | None, doc("address:port it was translated to; null without, or when there are several.")]
    service: Annotated[str | None, doc("Service of the address.")] = None
    namespace: Annotated[str | None, doc("Kubernetes namespace of the server's pod.")] = None
    pod: Annotated[str | None, doc("Pod name of the server.")] = None


class ExampleLine(msgspec.Struct, rename="pascal"):
    """What finds one session line of the incident."""

    time: Annotated[str, doc("Time of the session line.")]
    client: Annotated[str, doc("Client.Address and Client.Port of the session line.")]
    transaction_id: Annotated[int | None, doc("TransactionId of the session line.")]
    name: Annotated[str | None, doc("Name asked for; with --redact a word for it.")]
    type: Annotated[str | None, doc("Type asked for.")]


class IncidentLine(msgspec.Struct, rename="pascal"):
    """One incident, as it is when the line is written."""

    kind: Annotated[str, doc("Incident. Session lines have no such field.")]
    time: Annotated[str, doc("When the line was written, UTC, RFC 3339 with nanoseconds.")]
    node: Annotated[str, doc("Name of this node.")]
    state: Annotated[str, doc("Opened, Updated (once a minute at most) or Ended.")]
    id: Annotated[str, doc("The same in all lines of one incident.")]
    code: Annotated[str, doc("Code of the cause, as Cause.Code in session lines.")]
    confidence: Annotated[str, doc("The lowest of the verdicts: high, medium or low.")]
    message: Annotated[str | None, doc("Cause of the latest failing lookup, one sentence; null on the HTTP port.")]
    place: Annotated[str, doc("Where they fail, as far as it is the same for all: message, network namespace, server.")]
    client: ClientNames | None
    server: ServerNames | None
    lookups: Annotated[int, doc("Lookups that failed, or lost an attempt.")]
    clients: Annotated[int, doc("Clients, by address and network namespace; 128 stands for 128 or more.")]
    first: Annotated[str, doc("Time of the first of these lookups.")]
    last: Annotated[str, doc("Time of the last of these lookups.")]
    share_percent: Annotated[
        float | None,
        doc(
            "Lookups in percent of all from First to Last: of these clients' where the cause blames a client, of "
            "those that asked these servers where it blames a server, else of the node's; null when they were not all "
            "counted."
        ),
    ]
    held_back: Annotated[int, doc("Session lines of it that were not printed: --failure-rate, --max-lines.")]
    examples: Annotated[list[ExampleLine], doc("Up to three of its lookups, each of another client.")]
    remedy: Annotated[str, doc("What to do.")]
    doc: Annotated[str, doc("Where the cause is explained.")]


def build(account: Account, context: Context, now_ns: int) -> IncidentLine:
    """The line of an incident.

    Args:
        account: What there is to tell.
        context: What the line says beside that.
        now_ns: Wall clock.
    """
    cause = account.cause
    return IncidentLine(
        kind=KIND,
        time=rfc3339(now_ns),
        node=context.node,
        state=account.state.value,
        id=account.identifier,
        code=cause.code,
        confidence=account.confidence.value,
        message=cause.text,
        place=account.key.place,
        client=_client(account.client),
        server=_server(account.asked),
        lookups=account.lookups,
        clients=account.clients,
        first=rfc3339(account.first_ns + context.wall_offset_ns),
        last=rfc3339(account.last_ns + context.wall_offset_ns),
        share_percent=None if account.share is None else round(account.share * 100, 2),
        held_back=account.held_back,
        examples=[ExampleLine(*example) for example in account.examples],
        remedy=cause.remedy,
        doc=cause.doc,
    )


def _client(party: Party | None) -> ClientNames | None:
    return None if party is None else ClientNames(party.namespace, party.workload, party.pod, party.address)


def _server(asked: Asked | None) -> ServerNames | None:
    return None if asked is None else ServerNames(*asked)
