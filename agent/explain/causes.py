"""The causes: stable code, what it means at night, what to do. `docs/causes.md` has a section for each."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from agent.session.outcome import Leg

LEG_WORDS = {
    Leg.QUERY: "query",
    Leg.REPLY: "reply",
    Leg.UPSTREAM_QUERY: "server's own query",
    Leg.UPSTREAM_REPLY: "reply of the upstream",
}
"""Messages, for sentences."""


QUERY, REPLY, UPSTREAM = EVERYWHERE = ("query", "reply", "upstream")
"""Messages, for metrics: what the server asks an upstream and what it hears are one leg there."""


class Side(StrEnum):
    """Who or what has to be looked at."""

    CLIENT = "client"
    SERVER = "server"
    UPSTREAM = "upstream"
    NAMESPACE = "namespace"
    """What the kernel keeps for a whole network namespace."""
    DEVICE = "device"
    ROUTE = "route"
    """The way from a network namespace to a server."""
    AGENT = "agent"
    """The agent's own records are missing: nobody is blamed, and there is no incident."""


class CauseText(NamedTuple):
    """What is the same whenever one code is given. `sentence` takes the fields that its rule found out."""

    sentence: str
    remedy: str
    lost: tuple[str, ...] = EVERYWHERE
    """Which messages it can be the loss of, none if it is no loss. An error that ended the lookup lost none, one after
    which the client asked again is a lost query."""
    side: Side = Side.CLIENT
    """Who or what is blamed, which decides which lookups are one incident."""


CAUSES: dict[str, CauseText] = {
    "CaptureLoss": CauseText(
        "How this lookup ended is not known: {gap}.",
        "To see how such lookups end, {advice}. This one may have been fine.",
        (),
        side=Side.AGENT,
    ),
    "IPVSStaleBackend": CauseText(
        "IPVS still sends this client's queries to {backend}, which no longer belongs to the Service.",
        "Set net.ipv4.vs.expire_nodest_conn=1 and a shorter UDP timeout (ipvsadm --set), use a newer kernel and "
        "kube-proxy, or NodeLocal DNSCache; a client that opens a new socket is not affected.",
        (QUERY,),
        side=Side.SERVER,
    ),
    "StaleConntrackEntry": CauseText(
        "An old conntrack entry still translates this client's queries to {backend}, which no longer answers.",
        "Delete the entry (conntrack -D -p udp --orig-port-src {port}), update kube-proxy, or let the client reopen "
        "its socket: each retry from the same port keeps the entry alive.",
        (QUERY,),
        side=Side.SERVER,
    ),
    "ConntrackTableFull": CauseText(
        "The connection-tracking table of {place} is full, so the kernel dropped the {message}.",
        "Raise net.netfilter.nf_conntrack_max, find out what fills the table (conntrack -S, conntrack -L), or keep DNS "
        "out of it with NodeLocal DNSCache.",
        side=Side.NAMESPACE,
    ),
    "ConntrackRace": CauseText(
        "Two packets raced to enter the connection-tracking table of {place}, and the {message} lost.",
        "Use a newer kernel, fully random ports for masquerading, NodeLocal DNSCache, or resolver options that keep A "
        "and AAAA off the same socket (single-request-reopen).",
        side=Side.NAMESPACE,
    ),
    "ServerSocketOverflow": CauseText(
        "The DNS server's receive buffer was full, so the kernel dropped the {message} in {place}.",
        "The server does not read fast enough: give it more CPU or replicas, or use NodeLocal DNSCache; a larger "
        "receive buffer (net.core.rmem_max) only helps against bursts.",
        (QUERY, UPSTREAM),
        side=Side.SERVER,
    ),
    "ClientSocketOverflow": CauseText(
        "The client's receive buffer was full, so the kernel dropped the reply in {place}.",
        "The client does not read its replies fast enough: look at its CPU limit, and at how many queries it sends "
        "at once.",
        (REPLY,),
    ),
    "PolicyDrop": CauseText(
        "A {mechanism} in {place} dropped the {message}.",
        "Look at the network policies and firewall rules of that namespace: DNS needs UDP and TCP port 53 both ways.",
    ),
    "NoEndpoints": CauseText(
        "The Service {service} has no ready endpoint, so the {message} got no further than {place}.",
        "Look at the DNS server's pods (kubectl get pods,endpointslices in its namespace): none is running, none is "
        "ready, or the Service's selector matches none. Their logs and readiness probe say why.",
        (QUERY, UPSTREAM),
        side=Side.SERVER,
    ),
    "NoListener": CauseText(
        "The {message} reached {address}, but nothing listens on port {port} there.",
        "Look at the DNS server's pod and log: it is down, restarting, or bound to another address.",
        (QUERY, UPSTREAM),
        side=Side.SERVER,
    ),
    "LateReply": CauseText(
        "The reply came {delay} after the query, and the client had closed its socket by then.",
        "Look at what made the reply late: the server, its upstream, or an attempt that was lost before.",
        (REPLY,),
        side=Side.SERVER,
    ),
    "InterfaceDown": CauseText(
        "The device {interface} in {place} is down or has no other end, so the {message} was lost there.",
        "Look at the pod or link behind that device: it is gone, and the routes still point to it.",
        side=Side.DEVICE,
    ),
    "NoRoute": CauseText(
        "There is no usable route from {place} to {destination}: the {message} was lost.",
        "Look at the routes of that namespace and at the CNI: the pod is gone, or its route was never made.",
        side=Side.ROUTE,
    ),
    "NeighbourFailure": CauseText(
        "No host answered for {destination} on the link of {place}: the {message} was lost.",
        "Look at ARP and neighbour discovery there (ip neigh): the pod or node behind it is gone, or the neighbour "
        "table is full.",
        side=Side.ROUTE,
    ),
    "ReversePathFilter": CauseText(
        "The kernel in {place} does not accept packets from {source} there, and dropped the {message}.",
        "Look at net.ipv4.conf.*.rp_filter and at the route back to the source: it uses another device.",
        side=Side.DEVICE,
    ),
    "ChecksumError": CauseText(
        "The {message} was damaged: its checksum or length is wrong in {place}.",
        "Look at checksum offload on the devices along the way (ethtool -K ... tx off), and on tunnels first.",
        side=Side.DEVICE,
    ),
    "FragmentLost": CauseText(
        "The {message} was too large for one packet, and a fragment of it was lost before {place}.",
        "Keep answers small (EDNS buffer size 1232), or find what drops fragments: many firewalls do.",
        side=Side.ROUTE,
    ),
    "QueueOverflow": CauseText(
        "A queue was full in {place}, so the kernel dropped the {message}.",
        "Look at the traffic and limits of that device (tc -s qdisc), at the node's CPU, and at "
        "net.core.netdev_max_backlog.",
        side=Side.DEVICE,
    ),
    "KernelDrop": CauseText(
        "The kernel dropped the {message} in {place}: {reason}.",
        "The reason and the kernel function say what refused it; look there first.",
    ),
    "UnexpectedSource": CauseText(
        "The reply came from {source}, but the client had asked {asked}: resolvers discard such a reply.",
        "Look for address translation that happens on the way to the server and not on the way back (NAT rules, "
        "bridges), or for a server with several addresses that replies from the wrong one.",
        (REPLY,),
        side=Side.SERVER,
    ),
    "MalformedReply": CauseText(
        "A reply came from {address} {delay} after the query, but clients cannot read it: {difference}.",
        "Look at the DNS server, and at what may change packets on the way from it: a middlebox, or checksum offload.",
        (REPLY,),
        side=Side.SERVER,
    ),
    "MismatchedReply": CauseText(
        "A reply came from {address} {delay} after the query, but clients ignore it: {difference}.",
        "Look at the DNS server and at forwarders before it: one of them may mix up queries. If many replies come "
        "that no client asked for, somebody may be trying to forge answers.",
        (REPLY,),
        side=Side.SERVER,
    ),
    "UpstreamTCPUnavailable": CauseText(
        "The DNS server asked its upstream {address} over TCP and got no connection.",
        "Let the server prefer UDP upstream (CoreDNS: prefer_udp; NodeLocal: no force_tcp), or open TCP port 53 there.",
        (UPSTREAM,),
        side=Side.UPSTREAM,
    ),
    "UpstreamTimeout": CauseText(
        "The DNS server asked its upstream {address} and got no answer.",
        "Look at the network from the DNS server to that upstream, and at the provider's query limit for this node.",
        (UPSTREAM,),
        side=Side.UPSTREAM,
    ),
    "ServerNoReply": CauseText(
        "The query reached the server at {address} and no reply came back.",
        "Look at the DNS server: it may be overloaded, stopped, or configured to drop this query.",
        (QUERY,),
        side=Side.SERVER,
    ),
    "LeftNode": CauseText(
        "The query {left} and no reply came back.",
        "Look beyond {here}: security groups, ACLs, the underlay, a provider's query limit, the server's node.",
        (QUERY,),
        side=Side.SERVER,
    ),
    "UpstreamError": CauseText(
        "The DNS server {deed}.",
        "Ask whoever runs the upstream, with the name, the time and this node.",
        (QUERY,),
        side=Side.UPSTREAM,
    ),
    "ServerError": CauseText(
        "The DNS server {deed}.",
        "Look at the server's configuration: it may have no zone or upstream for this name, or have reached its "
        "concurrency limit.",
        (QUERY,),
        side=Side.SERVER,
    ),
    "Unknown": CauseText(
        "The {message} was last seen {place} and not after that; nothing seen here says why.",
        "The path shows the last hop; look at what comes after it.",
        (QUERY, REPLY),
    ),
}


RUNBOOKS = {
    "IPVSStaleBackend": "DNSStaleBackend",
    "StaleConntrackEntry": "DNSStaleBackend",
    "ConntrackTableFull": "ConntrackDropping",
    "ConntrackRace": "DNSPairHalfLost",
    "ServerSocketOverflow": "DNSReceiveBufferOverflow",
    "NoEndpoints": "DNSQueriesLost",
    "NoListener": "DNSServerNotAnswering",
    "ServerNoReply": "DNSServerNotAnswering",
    "LeftNode": "DNSQueriesLostOnNode",
    "UpstreamTCPUnavailable": "DNSUpstreamNotAnswering",
    "UpstreamTimeout": "DNSUpstreamNotAnswering",
    "UpstreamError": "DNSServerErrors",
    "ServerError": "DNSServerErrors",
}
"""Pages of `docs/runbooks/` that speak of a cause."""


class Gap(NamedTuple):
    """Why a record of a lookup is missing, and what keeps that from happening again."""

    words: str
    advice: str


RECORDS_LOST = Gap(
    "the agent lost records of its own while this lookup was open",
    "enlarge --ring-size, or lower the load on this node",
)
BYTES_MISSING = Gap(
    "bytes of its TCP connection were sent but not captured",
    "capture with a larger buffer (dnstrail --ring-size, tcpdump -B) and see how much the capture dropped",
)
REPLY_CUT = Gap(
    "a reply came, and the capture cut it before the end of its question",
    "capture whole packets (tcpdump -s 0)",
)
TOO_MANY_OPEN = Gap(
    "too many lookups were open at once, and the agent closed the oldest of them early",
    "enlarge --max-sessions, or find the client that opens so many lookups",
)
TOO_MANY_PACKETS = Gap(
    "it had more packets than the agent keeps for one lookup",
    "look at what its client and server keep repeating (the path shows the first packets)",
)
CAPTURE_ENDED = Gap(
    "the capture ended {seconds:.3f} s after its last packet",
    "let the capture run for 10 s after the last query of a lookup",
)
