"""How the kernel spells each way to die: drop reasons, and for those without one the function that freed the packet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.evidence import CARRIER_LOST, STARTED
from agent.explain.verdict import HIGH, MEDIUM, Confidence
from agent.hop.drops import UNSAID

if TYPE_CHECKING:
    from agent.hop.drops import DropReason
    from agent.session.outcome import PacketDrop


class Signature(NamedTuple):
    """What speaks for a code."""

    reasons: frozenset[str] = frozenset()
    """Names of enum skb_drop_reason. A reason that a kernel has says it for certain."""
    locations: frozenset[str] = frozenset()
    """Functions that free packets for this cause alone, for kernels and places without a reason."""
    vague: frozenset[str] = frozenset()
    """Functions that free packets for other causes too: medium."""


SIGNATURES: dict[str, Signature] = {
    "SocketOverflow": Signature(
        frozenset({"SOCKET_RCVBUFF", "PROTO_MEM", "SOCKET_BACKLOG"}),
        vague=frozenset(
            {"udp_queue_rcv_one_skb", "udp_queue_rcv_skb", "udpv6_queue_rcv_one_skb", "udpv6_queue_rcv_skb"}
        ),
    ),
    "NoRoute": Signature(
        frozenset({"IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS", "IPV6_NDISC_NS_OTHERHOST"}),
        # Routes of the types blackhole, unreachable and prohibit have no reason of their own.
        frozenset(
            {
                "ip_error",
                "ip6_pkt_discard",
                "ip6_pkt_discard_out",
                "ip6_pkt_drop",
                "ip6_pkt_prohibit",
                "dst_discard",
                "dst_discard_out",
                "ip6_pkt_prohibit_out",
            }
        ),
    ),
    "NeighbourFailure": Signature(
        frozenset(
            {"NEIGH_FAILED", "NEIGH_QUEUEFULL", "NEIGH_DEAD", "NEIGH_CREATEFAIL", "NEIGH_HH_FILLFAIL", "OTHERHOST"}
        ),
        frozenset(
            {
                "neigh_invalidate",
                "__neigh_event_send",
                "neigh_resolve_output",
                "arp_error_report",
                "ndisc_error_report",
            }
        ),
        # They purge what waits for an address; the entry may also have been deleted or changed by somebody.
        vague=frozenset({"neigh_timer_handler", "neigh_update", "__neigh_update", "neigh_destroy"}),
    ),
    "ReversePathFilter": Signature(
        frozenset({"IP_RPFILTER", "IP_LOCAL_SOURCE", "IP_INVALID_SOURCE", "IP_INVALID_DEST", "IP_LOCALNET"}),
        vague=frozenset({"ip_rcv_finish", "ip_rcv_finish_core", "ip_route_input_slow"}),
    ),
    "ChecksumError": Signature(frozenset({"UDP_CSUM", "TCP_CSUM", "IP_CSUM", "SKB_CSUM"})),
    "FragmentLost": Signature(
        frozenset({"FRAG_REASM_TIMEOUT", "FRAG_TOO_FAR", "DUP_FRAG"}),
        frozenset(
            {
                "ip_expire",
                "ip6frag_expire_frag_queue",
                "ip6_frag_expire",
                "nf_ct_frag6_expire",
                "inet_frag_rbtree_purge",
            }
        ),
    ),
    "QueueOverflow": Signature(
        frozenset(
            {
                "QDISC_DROP",
                "QDISC_OVERLIMIT",
                "QDISC_CONGESTED",
                "QDISC_TOO_BIG",
                "CPU_BACKLOG",
                "FULL_RING",
                "NOMEM",
                "FQ_BAND_LIMIT",
                "FQ_HORIZON_LIMIT",
                "FQ_FLOW_LIMIT",
                "SKB_UCOPY_FAULT",
            }
        ),
        frozenset({"enqueue_to_backlog", "pfifo_tail_enqueue", "__qdisc_drop_all"}),
        vague=frozenset({"__dev_queue_xmit", "__dev_xmit_skb", "veth_xmit"}),
    ),
    "InterfaceDown": Signature(frozenset({"DEV_READY"}), vague=frozenset({"dev_hard_start_xmit", "noop_enqueue"})),
}
ON_THE_WAY = ("NoRoute", "NeighbourFailure", "ReversePathFilter", "FragmentLost", "QueueOverflow")
"""Codes for which the kernel's word is enough, in the order in which they are tried."""
"""Reasons: include/net/dropreason-core.h and dropreason-qdisc.h. Locations were traced."""

PROGRAMS = {
    "TC_INGRESS": "tc program (ingress)",
    "TC_EGRESS": "tc program (egress)",
    "XDP": "XDP program",
    "BPF_CGROUP_EGRESS": "cgroup program (egress)",
    "SOCKET_FILTER": "socket filter or cgroup program (ingress)",
}
"""Drop reasons of programs that were loaded to say no."""
XDP_LOCATIONS = frozenset({"veth_xdp_rcv_skb", "do_xdp_generic", "veth_xdp_rcv_one", "netif_receive_generic_xdp"})

QUEUE_LOCATIONS = frozenset({"nfqnl_reinject", "nf_reinject", "nf_queue", "nfqnl_enqueue_packet", "nfqnl_flush"})
"""A rule handed the packet to a program (NFQUEUE), which refused it or was not there."""

WORDS = {
    "PKT_TOO_BIG": "it is larger than the next link's MTU and may not be fragmented",
    "PKT_TOO_SMALL": "it is shorter than its own header says",
    "IP_INHDR": "its IP header is not acceptable, or its time to live was used up",
    "IPV6DISABLED": "IPv6 is switched off there",
    "UNHANDLED_PROTO": "nothing there handles its protocol",
}
"""What some of the other reasons mean."""


def link_is_down(drop: PacketDrop) -> bool:
    """Whether the device of a drop has no carrier, or is not up."""
    hop = drop.hop
    state = hop.detail.device_state
    return bool(hop.ifindex) and (bool(state & CARRIER_LOST) or (bool(state) and not state & STARTED))


def confidence_in(code: str, drop: DropReason) -> Confidence | None:
    """How surely a drop is of this kind; None if it is not."""
    signature = SIGNATURES[code]
    if drop.reason in signature.reasons:
        return HIGH
    if drop.reason not in UNSAID:
        return None
    if drop.location in signature.locations:
        return HIGH
    return MEDIUM if drop.location in signature.vague else None
