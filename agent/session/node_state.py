"""What is known of the node beside the session at hand: from outside, and from earlier sessions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import Endpoint
from agent.hop.record import ORIGIN, PROCESS, RESPONSE, RX, TX, UDP, Hop
from agent.session.takers import Takers, taker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.hop.drops import DropReason, Kernel
    from agent.hop.record import Detail
    from agent.session.model import Session, Transmission

MAX_KNOWN = 65536
"""Namespaces, and devices. The kernel gives the number of a namespace again, that of a device never."""
MAX_WAYS = 65536
MAX_SERVERS = 64
MAX_PROCESSES = 64
UNSURE_NS = 1_000_000_000
MAX_SERVICES = 64
MAX_BACKENDS = 1024
KEPT_LOSSES = 1024
OTHER_HOST = "OTHERHOST"
WINDOW_NS = 60_000_000_000
ICMP_PAUSE_NS = 2_000_000_000
"""Twice as long as the kernel keeps quiet to one host by default (net.ipv4.icmp_ratelimit, 1 s)."""
MAX_REFUSED = 1024
PORT_UNREACHABLE = frozenset({(4, 3, 3), (6, 1, 4)})
"""ICMP errors by IP version, type and code (RFC 792, RFC 4443 3.1)."""


def _other_end(hops: list[Hop], index: int) -> Hop | None:
    """The departure that this arrival belongs to: of the same sk_buff, as a bridge sends several before one arrives.

    Else the one just before: some devices hand over a copy.
    """
    arrival = hops[index]
    same = (hop for hop in reversed(hops[:index]) if hop.event == TX and hop.skb == arrival.skb)
    before = hops[index - 1] if index and hops[index - 1].event == TX else None
    return next(same, before)


def _last_departures(hops: list[Hop]) -> list[Hop]:
    """Those behind which it was not seen arriving or dying any more."""
    start = next((index for index in range(len(hops), 0, -1) if hops[index - 1].event != TX), 0)
    return hops[start:]


class Losses:
    """When records were lost: intervals of CLOCK_MONOTONIC, the newest ones."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, int]] = deque(maxlen=KEPT_LOSSES)

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def add(self, start_ns: int, end_ns: int) -> None:
        """Note one interval."""
        self._intervals.append((start_ns, end_ns))

    def during(self, start_ns: int, end_ns: int) -> int | None:
        """When the last loss ended that touches this time; None without any."""
        return max((end for start, end in self._intervals if start <= end_ns and end >= start_ns), default=None)


@dataclass(slots=True, eq=False)
class Backend:
    """One server behind a virtual address."""

    virtual: Endpoint
    """The address that it stands behind."""
    siblings: dict[Endpoint, Backend]
    """All that have answered behind that address, itself among them."""
    answered_ns: int = 0
    answers: int = 0
    """In the current window."""
    window: int = 0

    def count(self, answered_ns: int, number: int = 1) -> None:
        """So many more answers."""
        window = answered_ns // WINDOW_NS
        if window != self.window:
            self.window, self.answers = window, 0
        self.answers += number
        self.answered_ns = max(self.answered_ns, answered_ns)

    @property
    def all_answers(self) -> int:
        """Of all servers behind the address, in the same window."""
        return sum(sibling.answers for sibling in self.siblings.values() if sibling.window == self.window)


@dataclass(slots=True, eq=False)
class Servers:
    """The DNS servers of one namespace, by the replies they sent."""

    programs: set[bytes] = field(default_factory=set)
    processes: set[int] = field(default_factory=set)
    """Those that replied over UDP. Over TCP some servers reply by a process of its own to each client."""
    addresses: set[bytes] = field(default_factory=set)
    given: set[bytes] = field(default_factory=set)
    """Those of them that the namespace does not have: a rule leads what is sent there to it."""
    unsure: dict[bytes, int] = field(default_factory=dict)
    """Those of them that the namespace may not have, because its addresses could not be read when it answered; and when
    to look again."""

    def learn_program(self, reply: Hop, detail: Detail) -> None:
        """Take note of the program, and over UDP the process, that sent a reply."""
        if len(self.programs) < MAX_SERVERS:
            self.programs.add(detail.comm)
        if reply.protocol == UDP:
            if detail.tgid not in self.processes and len(self.processes) >= MAX_PROCESSES:
                self.processes.clear()
            self.processes.add(detail.tgid)


class PathPattern(NamedTuple):
    """What the places of a complete, undisturbed lookup say. They say the same for the next one."""

    client_netns: int
    server_netns: int
    path: int
    inferred: int
    """Those of its bits that no hop showed."""
    ways_known: int
    """How much was known of the ways of replies when this was concluded: see `NodeState.continues`."""
    backend: Backend | None


def way_of(hop: Hop, client_netns: int) -> tuple[int, ...]:
    """A place on the way to a client's namespace. What is seen there may differ by protocol: TCP is seen at sockets."""
    return client_netns, hop.netns, hop.ifindex, hop.event, hop.family, hop.protocol


@dataclass(slots=True)
class NodeState:
    """What the node is known to be like, from outside and from earlier hops."""

    kernel: Kernel
    is_local: Callable[[int, bytes], bool | None]
    is_tapped: Callable[[int], bool] = lambda _netns: False
    """Whether a namespace only stands for a host whose packets were seen between two ends."""
    receiving: set[int] = field(default_factory=set)
    """Namespaces in which packets were seen coming in: there, a missing arrival means something (a CNI that redirects
    between devices by BPF skips the arrival, so in its pods it means nothing)."""
    forwarding: set[int] = field(default_factory=set)
    """Namespaces that were seen passing packets on."""
    serving: dict[int, Servers] = field(default_factory=dict)
    """Namespaces from which replies were sent, so that a DNS server lives there."""
    linked: set[tuple[int, int]] = field(default_factory=set)
    """Devices (namespace, index) whose other end is on this node: what left there came in elsewhere."""
    continues: set[tuple[int, ...]] = field(default_factory=set)
    """Where delivered replies were seen, and then were seen again further on (`way_of()`): a reply that is not seen any
    more behind such a place was lost without a word."""
    backends: dict[tuple[int, Endpoint], dict[Endpoint, Backend]] = field(default_factory=dict)
    """Servers that have answered, by the namespace that translates and the virtual address that was asked."""
    takers: Takers = field(default_factory=Takers)
    """Who answers for addresses that its namespace does not have."""
    refused: dict[tuple[int, Endpoint], int] = field(default_factory=dict)
    """When a namespace last saw "port unreachable" of an address and port. Rules that refuse do not say so each time:
    the kernel limits ICMP errors to one a second for each receiver (net.ipv4.icmp_ratelimit), after a few at once."""
    path_patterns: dict[tuple[tuple[int, ...], tuple[int, ...], bytes], PathPattern] = field(default_factory=dict)
    """Places of the query and of the reply and the addresses asked and answering, for lookups like earlier ones."""

    def is_benign(self, hop: Hop) -> bool:
        """Whether this drop is no loss: a frame for another host is one only where the address really lives."""
        drop = self.kernel.describe(hop)
        if drop.reason == OTHER_HOST:
            return self.owns(hop.netns, hop.detail.daddr) is not True
        return drop.benign

    def is_for_another_host(self, drop: Hop) -> bool:
        """Whether the kernel says of a frame that it is for another host (net/ipv4/ip_input.c)."""
        return self.kernel.describe(drop).reason == OTHER_HOST

    def learn_server(self, reply: Hop, detail: Detail) -> None:
        """Take note of who sent a reply, and from which address."""
        servers = self.serving.get(reply.netns)
        if servers is None:
            servers = self.serving[reply.netns] = Servers()
        address = detail.saddr
        known = address in servers.addresses and address not in servers.given
        if not known or servers.unsure.get(address, reply.ts_ns + 1) <= reply.ts_ns:
            self._learn_address(reply, detail, servers)
        if reply.flags & PROCESS:
            servers.learn_program(reply, detail)

    def _learn_address(self, reply: Hop, detail: Detail, servers: Servers) -> None:
        """An address that the namespace has, or one that a rule gives it; not one that a transparent proxy poses as."""
        address = detail.saddr
        is_local = self.is_local(reply.netns, address)
        servers.unsure.pop(address, None)
        if is_local:
            # It may not have been, a moment ago: a pod gets its address after its namespace.
            servers.given.discard(address)
            self.takers.forget_reply(reply, detail)
        if is_local is False:
            taker = taker_of(reply, detail)
            self.takers.note(reply, detail, taker)
            if taker.listens is None:
                servers.addresses.discard(address)
                return
            if len(servers.given) < MAX_SERVERS:
                servers.given.add(address)
        if len(servers.addresses) < MAX_SERVERS:
            servers.addresses.add(address)
            if is_local is None:
                servers.unsure[address] = reply.ts_ns + UNSURE_NS

    def learn_error(self, error: Hop) -> None:
        """Take note of an ICMP error about a query."""
        detail = error.detail
        if error.flags & RESPONSE or (error.family, detail.icmp_type, detail.icmp_code) not in PORT_UNREACHABLE:
            return
        if len(self.refused) >= MAX_REFUSED:
            self.refused.clear()
        self.refused[error.netns, Endpoint(detail.daddr, detail.dport)] = error.ts_ns

    def is_refused(self, hop: Hop) -> bool:
        """Whether, about that time, this hop's namespace saw "port unreachable" of where the packet was going to."""
        refused_ns = self.refused.get((hop.netns, Endpoint(hop.detail.daddr, hop.detail.dport)))
        return refused_ns is not None and abs(hop.ts_ns - refused_ns) <= ICMP_PAUSE_NS

    def owns(self, netns: int, address: bytes) -> bool | None:
        """Whether the namespace has, or had when it answered, this address: pods go while lookups wait.

        One that is there and has others is another namespace: the kernel gives the number of one that is gone to the
        next pod.
        """
        servers = self.serving.get(netns)
        if servers is None or address not in servers.addresses:
            return self.is_local(netns, address)
        if address in servers.given or address in servers.unsure:
            return True
        return self.is_local(netns, address) is not False

    def may_be_server(self, asking: Hop) -> bool:
        """Whether what sends this query may be a DNS server of its namespace: not if other programs are known to be.

        Another process of the very program has replaced it, or is a client that runs the same program, such as an
        interpreter. A client asks where that server is. Over TCP only programs count.
        """
        servers = self.serving.get(asking.netns)
        if servers is None or not asking.flags & PROCESS:
            return True
        detail = asking.detail
        if servers.programs and detail.comm not in servers.programs:
            return False
        if asking.protocol != UDP or not servers.processes or detail.tgid in servers.processes:
            return True
        return not self.is_local(asking.netns, detail.daddr)

    def learn(self, session: Session) -> None:
        """Take what a session's hops show of the namespaces they were in."""
        if max(map(len, (self.receiving, self.forwarding, self.serving, self.linked))) > MAX_KNOWN:
            self._forget()
        for query in (*session.queries.transmissions, *session.replies.transmissions):
            self._learn_path(query)
        self._learn_passing(session)

    def _forget(self) -> None:
        """Begin anew, path patterns too: lookups like earlier ones teach nothing, so nothing would be learned again."""
        for known in (self.receiving, self.forwarding, self.linked, self.continues):
            known.clear()
        self.serving.clear()
        self.path_patterns.clear()

    def _learn_path(self, transmission: Transmission) -> None:
        came_in: set[int] = set()
        for index, hop in enumerate(transmission.hops):
            if hop.event == RX:
                came_in.add(hop.netns)
                left = _other_end(transmission.hops, index)
                if left is not None and not self.is_tapped(left.netns):
                    self.linked.add((left.netns, left.ifindex))
            elif hop.event == TX and hop.netns in came_in:
                self.forwarding.add(hop.netns)
        self.receiving |= came_in

    def _learn_passing(self, session: Session) -> None:
        """Where an answered query was last seen coming in, and the answer is of elsewhere, it was passed on unseen."""
        if len(session.queries.transmissions) != 1 or not session.replies.transmissions:
            return
        last = session.queries.transmissions[0].hops[-1]
        first = session.replies.transmissions[0].hops[0]
        elsewhere = last.event == RX and first.netns != last.netns and first.flags & ORIGIN
        if elsewhere and self.is_local(last.netns, last.detail.daddr) is False:
            self.forwarding.add(last.netns)
            self.takers.forget(last)

    def learn_way_back(self, session: Session, client_netns: int | None) -> None:
        """Take note of the places from which delivered replies to this client went on, visibly."""
        if client_netns is None:
            return
        if len(self.continues) > MAX_WAYS:
            self.continues.clear()
        for reply in session.replies.transmissions:
            self.continues.update(way_of(hop, client_netns) for hop in reply.hops[:-1])

    def goes_on(self, reply: Transmission, client_netns: int) -> bool:
        """Whether replies to this client that came as far as this one were seen to go on from there."""
        return way_of(reply.hops[-1], client_netns) in self.continues

    def is_hidden_here(self, address: bytes) -> bool:
        """Whether a server of this node has answered from the address, in a namespace that shows no arrivals."""
        return any(netns not in self.receiving for netns in self._homes_of(address))

    def lives_here(self, address: bytes) -> bool:
        """Whether a server of this node has answered from the address."""
        return any(True for _ in self._homes_of(address))

    def _homes_of(self, address: bytes) -> Iterator[int]:
        """Namespaces in which a server has answered from the address."""
        return (netns for netns, servers in self.serving.items() if address in servers.addresses)

    def learn_answer(self, virtual: tuple[int, Endpoint], backend: Endpoint, answered_ns: int) -> Backend:
        """Take note that a server behind a virtual address has answered."""
        if len(self.backends) > MAX_SERVICES:
            self.backends.clear()
            self.path_patterns.clear()  # else their lookups would be counted for servers that are forgotten
        servers = self.backends.setdefault(virtual, {})
        if len(servers) > MAX_BACKENDS:
            servers.clear()
            self.path_patterns.clear()
        known = servers.get(backend)
        if known is None:
            known = servers[backend] = Backend(virtual[1], servers)
        known.count(answered_ns)
        return known

    def leaves_node(self, last: Hop) -> bool:
        """Whether a packet last seen at this hop is beyond this node."""
        return last.event == TX and (last.netns, last.ifindex) not in self.linked

    def bystanders(self, transmission: Transmission, strangers: set[tuple[int, int]]) -> list[Hop]:
        """Arrivals of a copy where it was not meant for: a bridge flooded it. They are no part of its way."""
        if not strangers:
            return []
        arrivals = (hop for hop in transmission.hops if hop.event == RX and (hop.netns, hop.ifindex) in strangers)
        return [hop for hop in arrivals if self.owns(hop.netns, hop.detail.daddr) is not True]

    def end_of(self, transmission: Transmission, strangers: set[tuple[int, int]]) -> Hop:
        """The last hop of its way. Of what was flooded: where it left the node, if it did, else where that began."""
        others = self.bystanders(transmission, strangers)
        if not others:
            return transmission.hops[-1]
        way = [hop for hop in transmission.hops if hop not in others]
        flood = _last_departures(way)
        out = self._way_out(flood)
        if out is not None:
            return out
        starts_here = flood and self.leaves_node(flood[0])
        return flood[0] if starts_here or len(flood) == len(way) else way[-len(flood) - 1]

    def has_left_node(self, transmission: Transmission, strangers: set[tuple[int, int]]) -> bool:
        """Whether it was last seen leaving by a device that has no other end on this node."""
        others = self.bystanders(transmission, strangers)
        if not others:
            return self.leaves_node(transmission.hops[-1])
        return self._way_out(_last_departures([hop for hop in transmission.hops if hop not in others])) is not None

    def _way_out(self, flood: list[Hop]) -> Hop | None:
        """Of a packet's departures at one time that by which it left the node."""
        for index, hop in enumerate(flood):
            # What a bridge itself sends is seen again at one of its ports.
            if self.leaves_node(hop) and all(later.skb != hop.skb for later in flood[index + 1 :]):
                return hop
        return None

    def died(self, transmission: Transmission, end: int | None) -> DropReason | None:
        """How a copy died, if it did: a drop with no later hop, and no other copy of it at its end before."""
        drop = transmission.drop
        if drop is None:
            return None
        if drop.netns != end and not drop.fragment and transmission.arrivals(end):
            return None
        return self.kernel.describe(drop)
