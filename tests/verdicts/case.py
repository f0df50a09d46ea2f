"""One row of the confusion matrix: a fault, how to inject it, and what dnstrail must say of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.lab import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, Lab, Translation
from agent.lab.wiring import Link
from tests.lab.proxies import Proxy

_serial = itertools.count(1)
FIRST_PORT, PORTS = 20_000, 12_000
"""Below those that the kernel hands out by itself, and not the resolvers' and servers' of the lab."""


class LabKind(NamedTuple):
    """Which lab a fault needs. Cases of one kind share one lab, one after the other."""

    translation: Translation = "iptables"
    clients: int = 2
    servers: int = 1
    note: str = ""
    """Sets cases apart that must not share a lab with others."""
    port: int = 53
    """Where the server pods listen."""
    link: Link = "veth"
    plane: str = ""
    """The name of the data plane that it gets in addition; see tests.verdicts.planes."""


PLAIN = LabKind()


class Hop(NamedTuple):
    """The last hop that the session line must show for the lost message."""

    event: str
    """tx, rx or drop."""
    netns: int
    interface: str | None = None
    """None: the packet had no device yet, or it does not matter."""


@dataclass(frozen=True)
class Injection:
    """One run of one case in a built lab: unique names to ask for, so that its sessions are known by their question."""

    lab: Lab
    proxies: Sequence[Proxy] = ()
    """Of its data plane."""
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def label(self) -> str:
        """What its names have in common."""
        return f"v{self.serial}-{os.getpid()}"

    @property
    def port(self) -> int:
        """A source port for a lookup that may not get as far as to ask for a name."""
        return FIRST_PORT + self.serial % PORTS

    @property
    def name(self) -> str:
        """A name that the server pods answer themselves."""
        return f"{self.label}.{ANY_CLUSTER_NAME}"

    @property
    def upstream_name(self) -> str:
        """A name for which the server pods ask the upstream."""
        return f"{self.label}.{ANY_UPSTREAM_NAME}"

    def names(self, count: int) -> list[str]:
        """Several names of the first kind."""
        return [f"n{number}.{self.name}" for number in range(count)]

    def owns(self, question: str) -> bool:
        """Whether a session line's question is one of this injection."""
        return any(f".{question}".endswith(f".{name}.") for name in (self.name, self.upstream_name))


class Connection(NamedTuple):
    """A lookup over TCP that did not get as far as to ask for a name: the client's end of its connection."""

    netns: int
    port: int


class Asked(NamedTuple):
    """The lookup of this name by this socket: a proxy asks for the same name by another one."""

    name: str
    netns: int
    port: int


Lost = str | tuple[str, str] | Connection | Asked
"""A name, a name and a type, a connection, or a socket's name: the lookup that was lost."""


def kernel_release() -> tuple[int, int]:
    """Major and minor number of the running kernel, where what it says of a drop depends on it."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def nothing_to_set_up(_lab: Lab) -> AbstractContextManager[object]:
    """For faults that are made anew by each injection."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault."""

    fault: str
    """The row's name: what was broken, where, by what. Unique."""
    code: str | None
    """The cause that every lost lookup must get; None for what must not yield any cause."""
    inject: Callable[[Injection], Iterable[Lost]]
    """Breaks something, looks names up (at least one), mends it, and returns which lookups were lost. For a benign case
    case it returns the lookups that must be there, and fine. All other lookups of the injection must have no cause."""
    confidence: str | None = "high"
    """None: it does not matter."""
    says: tuple[str, ...] = ()
    """Words that the cause's message or evidence must have, where they add to the code."""
    status: str = "Failed"
    last_hop: Callable[[Lab], Hop] | None = None
    findings: frozenset[str] = frozenset()
    """Findings that must be there, of the lost lookups."""
    exact: bool = False
    """Whether no other findings may be there."""
    bitmaps: frozenset[int] = frozenset()
    """Of which the line's BitMap has to be one; any where there is none."""
    wrong: Callable[[Lab, dict[str, Any]], str] | None = None
    """Says what else is not as it must be in a lost lookup's line; nothing if all is."""
    lab: LabKind = PLAIN
    setup: Callable[[Lab], AbstractContextManager[object]] = nothing_to_set_up
    """Held while all repetitions run; for what takes long to break."""
    probabilistic: bool = False
    """The kernel decides whether a lookup is lost: an injection may return nothing lost."""
    slow: bool = False
    """It takes long, or is a variant of another: `make test-slow` and `make verdicts` run it."""
    limit: str = ""
    """Why no more can be known: the code may be another one of `also`, or the confidence less than high."""
    also: frozenset[str] = frozenset()
    """Never with high confidence."""

    def __post_init__(self) -> None:
        assert self.limit or not self.also, f"{self.fault}: what else it may be needs a reason"
