"""Translations that are forgotten while a server thinks: its reply comes from an address that nobody asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from agent.lab import VIP, VIP6, Lab, Pod
from tests.lab.bridge import bridged
from tests.lab.conntrack_faults import forget_translations, forgetting_soon, only_replies_come_in
from tests.lab.scripted import scripted
from tests.lab.socket_faults import open_query
from tests.verdicts.case import PLAIN, Case, Hop, Injection, LabKind, Lost

NFTABLES = LabKind("nftables")
BRIDGE = LabKind(note="bridge")
BOTH = (VIP, VIP6)
UNLIKELY = "who deleted the entry, or what else kept the reply from it, packets do not show"
IMPATIENT = "a client that asked again may wait for the first reply all the same"
REPEAT_SECONDS = 2.6
"""The agent waits 5 s after the last query."""

Asker = Callable[[Lab], Pod]
Patience = Callable[[Injection, Asker, Sequence[str]], list[Lost]]
Setup = Callable[[Lab], AbstractContextManager[object]]


def pod_of(lab: Lab) -> Pod:
    return lab.clients[0]


def node_of(lab: Lab) -> Pod:
    return lab.node


@contextmanager
def slow_server(lab: Lab) -> Iterator[None]:
    with scripted(lab.servers[0]):
        yield


@contextmanager
def slow_server_behind_a_policy(lab: Lab) -> Iterator[None]:
    with scripted(lab.servers[0]), only_replies_come_in(lab, lab.clients[0]):
        yield


@contextmanager
def slow_server_on_a_bridge(lab: Lab) -> Iterator[None]:
    with bridged(lab, translated_back=True) as network, scripted(lab.servers[0], network.server, network.server6):
        yield


@contextmanager
def slow_server_and_short_memory(lab: Lab) -> Iterator[None]:
    with scripted(lab.servers[0]), forgetting_soon(lab, 1):
        yield


def gives_up(injection: Injection, asker: Asker, vips: Sequence[str]) -> list[Lost]:
    """The client waits for 3 s, asks again, and closes its socket; the server needs 5.2 s."""
    return _asks_twice(injection, asker, vips, 5200, REPEAT_SECONDS)


def asks_again(injection: Injection, asker: Asker, vips: Sequence[str]) -> list[Lost]:
    """The client asks again after a moment, and closes its socket."""
    return _asks_twice(injection, asker, vips, 1500, 0.1)


def _asks_twice(
    injection: Injection, asker: Asker, vips: Sequence[str], server_ms: int, repeat_seconds: float
) -> list[Lost]:
    names = [f"late-{server_ms}.{name}" for name in injection.names(len(vips))]
    end = time.monotonic() + server_ms / 1000 + repeat_seconds + 0.3
    with ExitStack() as stack:
        queries = [
            stack.enter_context(open_query(asker(injection.lab), name, server=vip))
            for name, vip in zip(names, vips, strict=True)
        ]
        for wait in (repeat_seconds, 0.1):
            for query in queries:
                query.send()
            time.sleep(wait)
        forget_translations(injection.lab)
    time.sleep(max(0.0, end - time.monotonic()))
    return [*names]


def waits(
    injection: Injection, asker: Asker, vips: Sequence[str], *, server_ms: int = 300, deleted: bool = True
) -> list[Lost]:
    """The client's socket is open when the reply comes."""
    names = [f"late-{server_ms}.{name}" for name in injection.names(len(vips))]
    with ExitStack() as stack:
        queries = [
            stack.enter_context(open_query(asker(injection.lab), name, server=vip))
            for name, vip in zip(names, vips, strict=True)
        ]
        for query in queries:
            query.send()
        if deleted:
            time.sleep(0.05)
            forget_translations(injection.lab)
        replies = [query.reply(server_ms / 1000 + 0.2) for query in queries]
    return [name for name, reply in zip(names, replies, strict=True) if reply is None]


def injected(patience: Patience, asker: Asker, vips: Sequence[str] = BOTH) -> Callable[[Injection], list[Lost]]:
    return lambda injection: patience(injection, asker, vips)


def at_client(lab: Lab) -> Hop:
    return Hop("drop", lab.clients[0].netns_id, "eth0")


def at_node(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id)


def late() -> Iterator[Case]:
    askers = {"": (pod_of, at_client), ", hostNetwork client": (node_of, at_node)}
    for kind in (PLAIN, NFTABLES):
        by = f"kube-proxy by {kind.translation}"
        for who, (asker, hop) in askers.items():
            yield Case(
                fault=f"translation deleted, reply 5 s late{who} ({by})",
                code="LateReply",
                inject=injected(gives_up, asker),
                setup=slow_server,
                last_hop=hop,
                says=("not translated back", "no entry for it any more"),
                lab=kind,
                slow=True,
            )
            yield Case(
                fault=f"translation deleted, the client had asked again and gone{who} ({by})",
                code="LateReply",
                confidence="medium",
                limit=IMPATIENT,
                inject=injected(asks_again, asker),
                setup=slow_server,
                last_hop=hop,
                says=("not translated back",),
                lab=kind,
            )
            yield Case(
                fault=f"translation deleted, reply in time{who} ({by})",
                code="KernelDrop",
                confidence="medium",
                limit=UNLIKELY,
                inject=injected(waits, asker),
                setup=slow_server,
                last_hop=hop,
                says=("had forgotten the translation",),
                lab=kind,
            )
        yield Case(
            fault=f"translation timed out, reply after 1.5 s ({by})",
            code="KernelDrop",
            confidence="medium",
            limit=UNLIKELY,
            inject=injected(partial(waits, server_ms=1500, deleted=False), pod_of),
            setup=slow_server_and_short_memory,
            last_hop=at_client,
            says=("had forgotten the translation",),
            lab=kind,
        )


def refused() -> Iterator[Case]:
    """Nothing but replies is let in, and what nobody remembers to have asked for is none."""
    yield Case(
        fault="translation deleted, reply 5 s late and refused by a policy",
        code="LateReply",
        inject=injected(gives_up, pod_of),
        setup=slow_server_behind_a_policy,
        last_hop=at_node,
        says=("not translated back",),
        slow=True,
    )
    yield Case(
        fault="translation deleted, reply in time and refused by a policy",
        code="KernelDrop",
        confidence="medium",
        limit=UNLIKELY,
        inject=injected(waits, pod_of),
        setup=slow_server_behind_a_policy,
        last_hop=at_node,
        says=("had forgotten the translation",),
    )


def on_a_bridge() -> Iterator[Case]:
    yield Case(
        fault="bridge, translation deleted, reply 5 s late",
        code="LateReply",
        inject=injected(gives_up, pod_of),
        setup=slow_server_on_a_bridge,
        last_hop=at_client,
        says=("not translated back", "no entry for it any more"),
        lab=BRIDGE,
        slow=True,
    )
    yield Case(
        fault="bridge, translation deleted, reply in time",
        code="KernelDrop",
        confidence="medium",
        limit=UNLIKELY,
        inject=injected(waits, pod_of),
        setup=slow_server_on_a_bridge,
        last_hop=at_client,
        says=("had forgotten the translation",),
        lab=BRIDGE,
    )


CASES: tuple[Case, ...] = (*late(), *refused(), *on_a_bridge())
