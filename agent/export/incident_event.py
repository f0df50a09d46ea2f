"""What `kubectl describe` says of an incident: the Event of a pod, and that of the node.

It says what the incident line says, and no name that was looked up. Pure: times are parameters.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.enrich.kube.events import Event
from agent.explain.causes import Side
from agent.explain.incidents import State
from agent.explain.troubled_pods import MAX_PODS
from agent.explain.verdict import CONFIDENCE_WORDS
from agent.export.clock import rfc3339
from agent.export.redaction import unquoted

if TYPE_CHECKING:
    from agent.explain.incident_key import Party
    from agent.explain.incidents import Account
    from agent.explain.troubled_pods import PodTrouble
    from agent.export.line import Context

COMPONENT = "dnstrail"
NODE_NAMESPACE = "default"
"""Where Events of objects live that belong to no namespace."""
INCIDENT = "dnstrail/incident"
"""Annotation: `Id` of the incident lines."""
MAX_MESSAGE_BYTES = 1024
"""More the API refuses in its newer form, and tools rely on it (k8s.io/api: NoteLengthLimit)."""
MAX_SENTENCE_BYTES = 300
"""Of the cause, of the remedy and of the place: what stands between and behind them has room, too."""
MAX_NAME_BYTES = 128
CUT = "…"
SECONDS_LENGTH = len("2026-11-21T05:41:14")
WHOLE = {
    Side.CLIENT: "of all lookups of these clients",
    Side.SERVER: "of all lookups that these servers got",
    Side.UPSTREAM: "of all lookups that these servers got",
}
"""What the share is a share of; of the node's lookups for all others."""


class Numbers(NamedTuple):
    """What is counted for one object."""

    lookups: int
    first_ns: int
    last_ns: int
    """In the time of the records."""


def event_of_pod(account: Account, trouble: PodTrouble, context: Context) -> Event:
    """The Event of one of its pods.

    Args:
        account: The incident.
        trouble: The pod's part of it.
        context: Name of the node, and the wall clock.
    """
    pod, numbers = trouble.pod, Numbers(trouble.lookups, trouble.first_ns, trouble.last_ns)
    more = []
    if account.clients > 1:
        more.append(f"In all: {_counted(account.lookups, 'lookup')} of {_clients(account)}.")
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
    return _event(account, about, numbers, _message(account, numbers, "of this pod", more, context), context)


def event_of_node(account: Account, pods_told: int, context: Context) -> Event:
    """The Event of the node.

    Args:
        account: The incident.
        pods_told: How many of its pods have an Event of their own.
        context: Name of the node, and the wall clock.
    """
    numbers = Numbers(account.lookups, account.first_ns, account.last_ns)
    whose = f"of {_clients(account)}"
    if account.client is not None and _is_here(account.client, account):
        whose = f"of {_clean(str(account.client), MAX_NAME_BYTES)} ({_clients(account)})"
    more = []
    if account.share is not None:
        whole = WHOLE.get(account.key.side, "of all lookups of the node")
        more.append(f"That is {account.share * 100:.3g} % {whole}.")
    if len(account.pods) > pods_told:
        least = " or more" if len(account.pods) == MAX_PODS else ""
        more.append(f"{pods_told} of {len(account.pods)}{least} pods have an Event of their own.")
    # As the kubelet and `kubectl describe node` have it: a node's Events bear its name for a UID.
    about = {"apiVersion": "v1", "kind": "Node", "name": context.node, "uid": context.node}
    return _event(
        account, about, numbers, _message(account, numbers, f"{whose}, seen on this node,", more, context), context
    )


def _is_here(client: Party, account: Account) -> bool:
    """Whether the client is surely on this node; what is elsewhere is for the Events of other nodes to name."""
    return bool(account.pods) if client.namespace else client.netns is not None


def _event(account: Account, about: dict[str, str], numbers: Numbers, message: str, context: Context) -> Event:
    namespace = about.get("namespace", NODE_NAMESPACE)
    name = f"{COMPONENT}.{_digest(account.identifier, context.node, about['kind'], about['uid'])}"
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace, "annotations": {INCIDENT: account.identifier}},
        "involvedObject": about,
        "type": "Warning",
        "reason": account.cause.code,
        "message": message,
        "count": numbers.lookups,
        "firstTimestamp": _seconds(numbers.first_ns, context),
        "lastTimestamp": _seconds(numbers.last_ns, context),
        "source": {"component": COMPONENT, "host": context.node},
        "reportingComponent": COMPONENT,
        "reportingInstance": context.node,
    }
    return Event(namespace, name, body, may_be_gone=about["kind"] == "Pod")


def _message(account: Account, numbers: Numbers, whose: str, more: list[str], context: Context) -> str:
    """The sentences, the most important ones first.

    Args:
        account: The incident.
        numbers: What is counted for this object.
        whose: Lookups they are.
        more: Sentences about the numbers.
        context: The wall clock.
    """
    cause, first, last = account.cause, _seconds(numbers.first_ns, context), _seconds(numbers.last_ns, context)
    begin = "Not seen any more. " if account.state is State.ENDED else ""
    what = f"{_counted(numbers.lookups, 'DNS lookup')} {whose} failed or lost an attempt from {first} to {last}."
    where = f"At: {_clean(account.key.place, MAX_SENTENCE_BYTES)}."
    if account.asked is not None:
        where = f"Asked: {_clean(str(account.asked), MAX_NAME_BYTES)}. {where}"
    sentences = (
        f"{begin}{what}",
        *more,
        f"Cause of the latest: {_clean(unquoted(cause.text), MAX_SENTENCE_BYTES)}",
        f"Confidence {account.confidence.value}: {CONFIDENCE_WORDS[account.confidence]}.",
        f"What to do: {_clean(unquoted(cause.remedy), MAX_SENTENCE_BYTES)}",
        where,
        f"See {cause.doc}.",
    )
    return _cut(" ".join(sentences), MAX_MESSAGE_BYTES)


def _clients(account: Account) -> str:
    return f"{MAX_PODS} or more clients" if account.clients >= MAX_PODS else _counted(account.clients, "client")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _clean(words: str, most_bytes: int) -> str:
    """Without what terminals and browsers obey, and not longer than that."""
    visible = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in words)
    return _cut(visible, most_bytes)


def _cut(words: str, most_bytes: int) -> str:
    data = words.encode(errors="replace")
    if len(data) <= most_bytes:
        return data.decode()
    return data[: most_bytes - len(CUT.encode())].decode(errors="ignore") + CUT


def _seconds(stamp_ns: int, context: Context) -> str:
    """As the API has times: whole seconds, UTC."""
    return f"{rfc3339(stamp_ns + context.wall_offset_ns)[:SECONDS_LENGTH]}Z"


def _digest(*parts: str) -> str:
    return blake2s("\0".join(parts).encode(), digest_size=10).hexdigest()
