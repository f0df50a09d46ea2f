"""A night on a node, as the page is told of it: real hops, sessions, verdicts, incidents and the real HTTP server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from agent.capture.counters import Counters
from agent.capture.losses import NOTHING
from agent.context.cluster import Pod, Service
from agent.context.who import NOBODY, Who
from agent.explain.rules import explain
from agent.export.clock import wall_offset_ns
from agent.export.incident_reporter import IncidentReporter
from agent.export.line import Context, Line, build
from agent.export.metrics import catalogue
from agent.export.metrics.pages import Pages
from agent.export.metrics.sources import Agent, Sources
from agent.export.printer import LineOptions, Printer
from agent.export.redaction import Redaction
from agent.page.pages import Node, PrivatePages
from agent.page.watcher import Watcher
from agent.serve import Address, Limits, Private, Server
from agent.session.usual import Times
from tests.unit.conftest import MS, SECOND, START, Lookup, PlainHop, World, dropped

NODE = "node-a"
COREDNS = Pod("3", "kube-system", "coredns-7d56l", "Deployment/coredns", NODE, False, "Default", ())
KUBE_DNS = Service("kube-system", "kube-dns", False, ())
IN_FORWARD = ("nft_do_chain", "nf_hook_slow", "ip_forward")
LOOPBACK = Address("127.0.0.1", 0)
FAST = Limits(connections_a_second=1000)


@dataclass(frozen=True)
class Client:
    """A pod of the node."""

    namespace: str
    name: str
    address: str
    netns: int
    process: bytes

    def asks(self, name: str | bytes, number: int, rdtype: int = 1) -> Lookup:
        """One of its lookups."""
        return Lookup(
            name=name,
            rdtype=rdtype,
            client=(self.address, 20000 + number % 40000),
            client_netns=self.netns,
            identifier=number % 65536,
            comm=self.process,
            tgid=7000 + self.netns % 100,
        )

    @property
    def pod(self) -> Pod:
        """As the cluster tells of it."""
        workload = f"Deployment/{self.name}"
        return Pod(f"u-{self.name}", self.namespace, f"{self.name}-7d9f-x2x", workload, NODE, False, "ClusterFirst", ())


CART = Client("shop", "cart", "172.20.2.25", 4026532177, b"php-fpm")
TILL = Client("shop", "till", "172.20.2.26", 4026532178, b"java")
SEARCH = Client("shop", "search", "172.20.2.27", 4026532179, b"node")
REPORTS = Client("office", "reports", "172.20.2.28", 4026532180, b"python3")
CLIENTS = (CART, TILL, SEARCH, REPORTS)


class Captured:
    """A capture that lost nothing."""

    missed_runs = backlog_bytes = 0
    losses = NOTHING
    ring_bytes = 1 << 24
    programs: ClassVar[dict[str, int]] = {}
    limits: ClassVar[list[str]] = []

    def counters(self) -> Counters:
        """Nothing was counted."""
        none = dict.fromkeys(catalogue.EVENT.values, 0)
        return Counters(**(dict.fromkeys(Counters._fields, 0) | {"records": none, "lost": none}))


class Out:
    """Takes all lines."""

    lost = 0


@dataclass
class Night:
    """What the agent would tell the page, in virtual time."""

    names: str = "names"
    knows_cluster: bool = True
    now_ns: int = START
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        redaction = None if self.names == "names" else Redaction(b"key")
        self.watcher = Watcher(redaction, self.sources.tally, self.now_ns)
        self.printer = Printer(LineOptions(log="incidents", node=NODE), io.StringIO(), 0)
        self.printer.context = self.watcher.context = Context(NODE, wall_offset_ns())
        self.reporter = IncidentReporter(self.sources, self.printer, "none", self.watcher)
        self.number = 0
        self.sources.agent = Agent(Captured(), World().table, self.printer, Out())

    def pages(self) -> PrivatePages:
        """What answers."""
        return PrivatePages(self.sources, self.watcher, Node(NODE, self.names), lambda: self.now_ns / SECOND)

    def next(self) -> int:
        """A number that no lookup had."""
        self.number += 1
        return self.number

    def pass_by(self, seconds: float) -> None:
        """Let time go on."""
        self.now_ns += round(seconds * SECOND)
        self.reporter.report(self.now_ns)

    def see(self, client: Client, *parts: list[PlainHop]) -> None:
        """One lookup, from its packets."""
        world = World()
        for one in CLIENTS:
            world.addresses[one.netns] = {one.address}
        for outcome in world.outcomes(*parts):
            who = Who(client.pod, "app", COREDNS, KUBE_DNS) if self.knows_cluster else NOBODY
            verdict = explain(outcome)
            self.sources.tally.count(outcome, verdict, lambda who=who: who)
            incident = self.sources.incidents.note(outcome, verdict, lambda who=who: who, self.now_ns)
            self.watcher.note(outcome, verdict, lambda who=who: who, incident, self.now_ns)

    def usual(self, client: Client, lookups: int, milliseconds: float) -> None:
        """Lookups that went well, counted together."""
        world = World()
        world.addresses[client.netns] = {client.address}
        (outcome,) = world.outcomes(client.asks("stock.shop.svc.cluster.local.", self.next()).both(self.now_ns))
        who = Who(client.pod, "app", COREDNS, KUBE_DNS) if self.knows_cluster else NOBODY
        flow, _ = self.watcher.traffic_of(outcome, explain(outcome), lambda: who, self.now_ns)
        waited_ns = round(milliseconds * MS)
        flow.count_together(lookups, lookups * waited_ns)
        legs = ([waited_ns // 7] * lookups, [5 * waited_ns // 7] * lookups, [waited_ns // 7] * lookups)
        self.sources.tally.count_times(Times([waited_ns] * lookups, *legs))
        ends = (outcome.client_netns, outcome.session.key.client.address)
        self.sources.incidents.count(ends, outcome.server, lookups)

    def forbidden(self, client: Client, name: str | bytes) -> None:
        """A rule in FORWARD drops the query behind the translation."""
        lookup = client.asks(name, self.next())
        lost = dropped(
            lookup.query(self.now_ns), 2, location="nft_do_chain", stack=IN_FORWARD, destination=lookup.backend
        )
        self.see(client, lost)

    def retried(self, client: Client, name: str) -> None:
        """A full queue drops the first query; the second one is answered after five seconds."""
        lookup, again = client.asks(name, self.next()), self.now_ns + 5 * SECOND
        lost = dropped(lookup.query(self.now_ns), 3, "QDISC_DROP", "__dev_queue_xmit")
        self.see(client, lost, lookup.query(again), lookup.reply(again + MS))

    def forwarded(self, client: Client, name: str, milliseconds: float) -> None:
        """The server asks its upstream, which answers."""
        lookup = client.asks(name, self.next())
        onward = lookup.onward()
        at = self.now_ns
        waited = round(milliseconds * MS)
        self.see(
            client,
            lookup.query(at),
            onward.query(at + MS // 5),
            onward.reply(at + MS // 5 + waited, aa=False, ra=True),
            lookup.reply(at + MS // 2 + waited, aa=False, ra=True),
        )

    def unheard(self, client: Client, name: str) -> None:
        """The server asks its upstream twice, which is silent, and says SERVFAIL."""
        lookup, at = client.asks(name, self.next()), self.now_ns
        onward, again = lookup.onward(), lookup.onward(identifier=lookup.identifier + 2, client=("10.244.1.53", 33001))
        self.see(
            client,
            lookup.query(at),
            onward.query(at + MS // 5),
            again.query(at + 2 * SECOND),
            lookup.reply(at + 6 * SECOND, rcode=2, aa=False),
        )

    def unanswered(self, client: Client, name: str) -> None:
        """The server has the query and says nothing."""
        self.see(client, client.asks(name, self.next()).query(self.now_ns))

    def fill(self, line: Line, number: int) -> None:
        """Keep so many problems like this one, without looking at the clock."""
        for _ in range(number):
            self.watcher.memory.keep(line)

    def line(self, name: str | bytes) -> Line:
        """The line of a lookup that failed."""
        lookup = CART.asks(name, self.next())
        (outcome,) = World().outcomes(dropped(lookup.query(START), 2))
        return build(outcome, explain(outcome), self.watcher.context, with_messages=False)


def bad_night(names: str = "names") -> Night:
    """Some minutes of a node on which a policy stops one workload and an upstream is silent."""
    night = Night(names)
    for minute in range(4):
        for second in range(0, 60, 5):
            share = 1 + (minute * 60 + second) // 40
            for client, lookups, milliseconds in ((CART, 160, 0.4), (TILL, 60, 0.6), (SEARCH, 420, 0.3)):
                night.usual(client, lookups, milliseconds)
            night.usual(REPORTS, 22, 0.5)
            for index in range(share):
                night.forbidden(CART, ("redis-master", "redis-slave", "stock")[index % 3] + ".shop.svc.cluster.local.")
            night.forwarded(SEARCH, f"www{second}.example.com.", 3.0 + second / 20)
            night.forwarded(TILL, "pay.example.net.", 14.0)
            if minute >= 2:
                for _ in range(4):
                    night.unheard(TILL, "rates.example.org.")
                    night.unheard(REPORTS, "mail.example.org.")
            if second == 30:
                night.retried(SEARCH, "static.example.com.")
            night.pass_by(5)
    return night


@contextmanager
def shown(night: Night) -> Iterator[str]:
    """The address of its page, while the block lasts."""
    private = Private(night.pages().by_path)
    with Server(LOOPBACK, Pages(night.sources).by_path, night.sources.traffic, FAST, private) as server:
        yield f"http://127.0.0.1:{server.address.port}/"
