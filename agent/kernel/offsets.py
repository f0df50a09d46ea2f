"""Which kernel offsets the BPF program needs, and their values on this kernel.

Everything comes from the kernel's types at start-up (agent.kernel.types), never from a table or a kernel
version: layouts differ between builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.kernel.btf import BtfError, load_kernel

if TYPE_CHECKING:
    from agent.kernel.btf import Btf

TRACEPOINTS = ("net_dev_queue", "netif_receive_skb", "kfree_skb")

OFFSETS = {
    "SK_BUFF_HEAD": ("sk_buff", "head"),
    "SK_BUFF_DATA": ("sk_buff", "data"),
    "SK_BUFF_LEN": ("sk_buff", "len"),
    "SK_BUFF_DATA_LEN": ("sk_buff", "data_len"),
    "SK_BUFF_PROTOCOL": ("sk_buff", "protocol"),
    "SK_BUFF_NETWORK_HEADER": ("sk_buff", "network_header"),
    "SK_BUFF_DEV": ("sk_buff", "dev"),
    "SK_BUFF_SK": ("sk_buff", "sk"),
    "NET_DEVICE_NET": ("net_device", "nd_net.net"),
    "NET_DEVICE_IFINDEX": ("net_device", "ifindex"),
    "NET_DEVICE_NAME": ("net_device", "name"),
    "NET_DEVICE_STATE": ("net_device", "state"),
    "NET_NS_INUM": ("net", "ns.inum"),
    "SOCK_RCVBUF": ("sock", "sk_rcvbuf"),
    "SOCK_RMEM": ("sock", "sk_backlog.rmem_alloc"),
    "SOCK_NET": ("sock", "__sk_common.skc_net.net"),
    "TASK_NSPROXY": ("task_struct", "nsproxy"),
    "TASK_GROUP_LEADER": ("task_struct", "group_leader"),
    "TASK_TGID": ("task_struct", "tgid"),
    "TASK_COMM": ("task_struct", "comm"),
    "NSPROXY_NET": ("nsproxy", "net_ns"),
}

# Read together, so that a packet that is not DNS costs one read of its sk_buff.
WINDOW = {
    "SK_BUFF_HEAD": 8,
    "SK_BUFF_DATA": 8,
    "SK_BUFF_LEN": 4,
    "SK_BUFF_DATA_LEN": 4,
    "SK_BUFF_PROTOCOL": 2,
    "SK_BUFF_NETWORK_HEADER": 2,
}
TRACKED_WINDOW = WINDOW | {"SK_BUFF_NFCT": 8}
"""On kernels with connection tracking."""
WINDOW_LIMIT = 128
COUNTER_BYTES = 4

CONNTRACK_OFFSETS = {
    "CT_ORIGINAL": ("nf_conn", "tuplehash"),
    "CT_STATUS": ("nf_conn", "status"),
    "CT_TUPLEHASH": ("nf_conntrack_tuple_hash", "tuple"),
    "TUPLE_SADDR": ("nf_conntrack_tuple", "src.u3"),
    "TUPLE_SPORT": ("nf_conntrack_tuple", "src.u"),
    "TUPLE_DADDR": ("nf_conntrack_tuple", "dst.u3"),
    "TUPLE_DPORT": ("nf_conntrack_tuple", "dst.u"),
    "TUPLE_PROTOCOL": ("nf_conntrack_tuple", "dst.protonum"),
}
# Where BTF of the module nf_conntrack is missing: the layout of every kernel from 4.19 to 6.18 that was looked at
# (include/net/netfilter/nf_conntrack{,_tuple}.h). The program checks each entry's protocol before it believes it.
CONNTRACK_FALLBACK = {
    "CT_ORIGINAL": 16 + 16,
    "CT_REPLY": 16 + 56 + 16,
    "CT_STATUS": 128,
    "CT_SPAN": 16 + 2 * 56 - 32 + 16,
    "TUPLE_SADDR": 0,
    "TUPLE_SPORT": 16,
    "TUPLE_DADDR": 20,
    "TUPLE_DPORT": 36,
    "TUPLE_PROTOCOL": 38,
}


CONNTRACK_STAT_OFFSETS = {
    "CT_STAT_INVALID": ("ip_conntrack_stat", "invalid"),
    "CT_STAT_INSERT_FAILED": ("ip_conntrack_stat", "insert_failed"),
    "CT_STAT_DROP": ("ip_conntrack_stat", "drop"),
}
COUNTER_PLACES = {"NET_CT_STAT": ("net", "ct.stat"), "BPF_ARRAY_PPTRS": ("bpf_array", "pptrs")}
# As CONNTRACK_FALLBACK: include/linux/netfilter/nf_conntrack_common.h since 5.10.
CONNTRACK_STAT_FALLBACK = {"CT_STAT_INVALID": 4, "CT_STAT_INSERT_FAILED": 12, "CT_STAT_DROP": 20}

STRUCTS = tuple(
    dict.fromkeys(
        struct
        for table in (OFFSETS, CONNTRACK_OFFSETS, CONNTRACK_STAT_OFFSETS, COUNTER_PLACES)
        for struct, _ in table.values()
    )
)
"""All structures that are asked for."""


def kernel_flags(kernel: Btf) -> dict[str, int]:
    """All `-D` values of the program for the running kernel.

    Raises:
        BtfError: a structure is not as this program knows it.
    """
    flags = {name: kernel.offset(struct, path) for name, (struct, path) in OFFSETS.items()}
    flags |= conntrack_flags(kernel)
    flags |= window_flags(flags)
    flags["KFREE_SKB_ARGS"] = kernel.tracepoint_args("kfree_skb")
    return flags | counter_flags(kernel)


def window_flags(offsets: dict[str, int]) -> dict[str, int]:
    """The part of struct sk_buff that is read at every packet.

    Raises:
        BtfError: it is too large to be read at once.
    """
    window = TRACKED_WINDOW if "SK_BUFF_NFCT" in offsets else WINDOW
    first = min(offsets[name] for name in window) // 8 * 8
    span = max(offsets[name] + size for name, size in window.items()) - first
    if span > WINDOW_LIMIT:
        raise BtfError(f"struct sk_buff spreads its headers over {span} bytes")
    return {"SKB_WINDOW": first, "SKB_WINDOW_SPAN": span}


def counter_flags(kernel: Btf) -> dict[str, int]:
    """Where the conntrack counters of a namespace are; empty when this kernel has none that can be found."""
    try:
        places = {name: kernel.offset(struct, path) for name, (struct, path) in COUNTER_PLACES.items()}
    except BtfError:
        return {}
    counters = _counter_layout(kernel)
    first = min(counters.values())
    relative = {name: offset - first for name, offset in counters.items()}
    span = max(relative.values()) + COUNTER_BYTES
    return places | relative | {"HAS_CONNTRACK_STAT": 1, "CT_STAT_FIRST": first, "CT_STAT_SPAN": span}


def _counter_layout(kernel: Btf) -> dict[str, int]:
    try:
        btf = kernel if kernel.has_struct("ip_conntrack_stat") else load_kernel("nf_conntrack")
        return {name: btf.offset(struct, path) for name, (struct, path) in CONNTRACK_STAT_OFFSETS.items()}
    except BtfError:
        return CONNTRACK_STAT_FALLBACK


def conntrack_flags(kernel: Btf) -> dict[str, int]:
    """Offsets into a conntrack entry; empty when this kernel has no connection tracking at all."""
    try:
        flags = {"HAS_CONNTRACK": 1, "SK_BUFF_NFCT": kernel.offset("sk_buff", "_nfct")}
    except BtfError:
        return {"CT_SPAN": 8}
    try:
        return flags | conntrack_layout(kernel if kernel.has_struct("nf_conn") else load_kernel("nf_conntrack"))
    except BtfError:
        return flags | CONNTRACK_FALLBACK


def conntrack_layout(btf: Btf) -> dict[str, int]:
    """Where the two tuples lie in struct nf_conn; both are read at once, CT_SPAN bytes from the first."""
    flags = {name: btf.offset(struct, path) for name, (struct, path) in CONNTRACK_OFFSETS.items()}
    inner = flags.pop("CT_TUPLEHASH")
    first = flags["CT_ORIGINAL"] + inner
    stride = btf.size("nf_conntrack_tuple_hash")
    return flags | {
        "CT_ORIGINAL": first,
        "CT_REPLY": first + stride,
        "CT_SPAN": stride + btf.size("nf_conntrack_tuple"),
    }


def drop_reasons(kernel: Btf) -> dict[int, str]:
    """Names of enum skb_drop_reason without the common prefix; empty before 5.17."""
    try:
        values = kernel.enum("skb_drop_reason")
    except BtfError:
        return {}
    return {value: name.removeprefix("SKB_DROP_REASON_").removeprefix("SKB_") for name, value in values.items()}
