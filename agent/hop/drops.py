"""What a drop record says in words, and which drops never are a loss.

Reason numbers are not stable between kernels: names come from BTF. NETFILTER_DROP alone says nothing, so the location
symbol and the netfilter hook, read off the kernel stack, belong to the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.hop.record import Hop

# Who calls nf_hook_slow() is the hook (net/ipv4, net/ipv6, net/core/dev.c).
HOOKS = {
    "ip_rcv": "PREROUTING",
    "ipv6_rcv": "PREROUTING",
    "ip_local_deliver": "INPUT",
    "ip6_input": "INPUT",
    "ip_forward": "FORWARD",
    "ip6_forward": "FORWARD",
    "ip_output": "POSTROUTING",
    "ip6_output": "POSTROUTING",
    "__ip_local_out": "OUTPUT",
    "__ip6_local_out": "OUTPUT",
    "ip6_xmit": "OUTPUT",  # TCP
    "raw_sendmsg": "OUTPUT",  # sockets that write the IP header themselves
    "rawv6_sendmsg": "OUTPUT",
    # br_netfilter shows bridged packets to the hooks of IP (net/bridge/br_netfilter_hooks.c, br_netfilter_ipv6.c). A
    # function that the compiler has merged into its caller is found by that.
    "br_nf_pre_routing": "PREROUTING",
    "br_nf_pre_routing_ipv6": "PREROUTING",
    "br_nf_local_in": "INPUT",
    "br_nf_forward_ip": "FORWARD",
    "br_nf_forward": "FORWARD",
    "br_nf_post_routing": "POSTROUTING",
    # The bridge's own hooks (net/bridge/br_input.c, br_forward.c). Behind br_netfilter it goes on from these.
    "br_handle_frame": "bridge PREROUTING",
    "br_pass_frame_up": "bridge INPUT",
    "__br_forward": "bridge FORWARD",
    "br_nf_forward_finish": "bridge FORWARD",
    "br_forward_finish": "bridge POSTROUTING",
    "br_nf_pre_routing_finish": "bridge PREROUTING",
    "br_nf_pre_routing_finish_ipv6": "bridge PREROUTING",
    "br_nf_hook_thresh": "bridge",
    "__netif_receive_skb_core": "netdev ingress",
    "__dev_queue_xmit": "netdev egress",
}

# (reason, location): None stands for any. A packet freed there was a copy, was read before, or never had a reader.
BENIGN = frozenset(
    {
        ("SKB_CONSUMED", None),
        ("CONSUMED", None),
        ("PACKET_SOCK_ERROR", None),  # a sniffer's copy that its filter refused (net/packet/af_packet.c)
        ("OTHERHOST", None),  # a bridge flooded it to others too (net/ipv4/ip_input.c)
        ("TCP_OLD_DATA", None),  # bytes that the receiver had already (net/ipv4/tcp_input.c)
        ("TCP_OFOMERGE", None),
        ("QUEUE_PURGE", None),  # a closed socket's unread queue; but see ON_THEIR_WAY
        (None, "skb_release_data"),  # refragmentation frees the old fragment list
        (None, "udp_destruct_common"),  # a closed socket's unread queue
        (None, "udp_destruct_sock"),
        (None, "skb_queue_purge"),
        (None, "skb_queue_purge_reason"),
        (None, "packet_rcv"),
        (None, "tcp_disconnect"),  # the unread queue of a closed connection, before it had a reason (6.1)
    }
)

ON_THEIR_WAY = ("neigh_", "__neigh_", "wg_")
"""Functions with queues of packets that wait to go on: for the address of a neighbour (net/core/neighbour.c), or for a
handshake of WireGuard. Packets that are purged there are lost."""
UNSAID = frozenset({None, "NOT_SPECIFIED", "QUEUE_PURGE"})
"""Reasons that say nothing of the cause: before 5.17, where the kernel gives none, and of a queue that was emptied."""
RECEIVE = frozenset({"__udp4_lib_rcv", "__udp6_lib_rcv", "tcp_v4_rcv", "tcp_v6_rcv"})
CLOSED = frozenset({"TCP_ABORT_ON_DATA", "TCP_CLOSE"})
"""Data for a TCP connection that its program has closed already (net/ipv4/tcp_input.c, tcp_rcv_state_process())."""

MAX_NAMED = 4096
"""Drops of different kinds whose names are kept; beyond it all are forgotten."""

# The packet was at its socket, which refused it: it did get to the server, or to the client.
AT_SOCKET = frozenset({"SOCKET_RCVBUFF", "SOCKET_FILTER", "PROTO_MEM"})


class DropReason(NamedTuple):
    """One drop of one packet, named."""

    reason: str | None
    """enum skb_drop_reason without its prefix; None on kernels without reasons (before 5.17)."""
    location: str | None
    """Kernel function that freed the packet; None when kernel symbols may not be read."""
    hook: str | None
    """Netfilter hook, when netfilter dropped it and the stack shows the caller."""

    @property
    def benign(self) -> bool:
        """Whether this is no loss at all."""
        if self.location and self.location.startswith(ON_THEIR_WAY):
            return False
        return (self.reason, None) in BENIGN or (None, self.location) in BENIGN

    @property
    def no_socket(self) -> bool:
        """Whether nothing listened."""
        return self.reason == "NO_SOCKET" or (self.reason in UNSAID and self.location in RECEIVE)

    @property
    def unwanted(self) -> bool:
        """Whether the program that it was for had gone, or had closed the connection."""
        return self.no_socket or self.reason in CLOSED

    @property
    def at_socket(self) -> bool:
        """Whether it died at its very destination."""
        return self.reason in AT_SOCKET or (self.location or "").startswith(("udp_queue_rcv", "udpv6_queue_rcv"))


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """What is needed to name a drop on the kernel that recorded it."""

    reasons: Mapping[int, str]
    symbol: Callable[[int], str | None]
    """Name of the function at a text address."""
    _named: dict[tuple[int, int, tuple[int, ...]], DropReason] = field(default_factory=dict, init=False, repr=False)
    """By reason, place and stack: a fault drops many packets alike, and each is asked about several times."""

    def describe(self, hop: Hop) -> DropReason:
        """Name reason, place and hook of a drop record."""
        detail = hop.detail
        key = detail.reason, detail.location, hop.stack
        found = self._named.get(key)
        if found is None:
            if len(self._named) >= MAX_NAMED:
                self._named.clear()
            location = self.symbol(detail.location)
            found = self._named[key] = DropReason(self.reasons.get(detail.reason), location, self._hook(hop))
        return found

    def _hook(self, hop: Hop) -> str | None:
        # A return address just behind the last call of a function belongs to the next one, hence the -1.
        # The compiler's own pieces of a function (`.part.0`, `.isra.0`) count as it.
        names = [(self.symbol(address - 1) or "").partition(".")[0] for address in hop.stack]
        if "nf_hook_slow" not in names and not any(name.startswith("nft_do_chain") for name in names):
            return None
        return next((HOOKS[name] for name in names if name in HOOKS), None)


UNKNOWN_KERNEL = Kernel({}, lambda _address: None)
"""For recordings: a capture file does not say why a packet died."""
