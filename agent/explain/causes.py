"""The causes: stable code, what it means at night, what to do. `docs/causes.md` has a section for each."""

from __future__ import annotations

from typing import NamedTuple


class CauseText(NamedTuple):
    """The words for one code. `sentence` takes the fields that its rule found out."""

    sentence: str
    remedy: str


CAUSES: dict[str, CauseText] = {
    "CaptureLoss": CauseText(
        "The agent itself lost records while this lookup was open, so its end is not known.",
        "Enlarge --ring-size, or lower the load on this node; the lookup may have been fine.",
    ),
    "NoListener": CauseText(
        "The query reached {address}, but nothing listens on port {port} there.",
        "Look at the DNS server's pod and log: it is down, restarting, or bound to another address.",
    ),
    "PolicyDrop": CauseText(
        "A {mechanism} in {place} dropped the {message}.",
        "Look at the network policies and firewall rules of that namespace: DNS needs UDP and TCP port 53 both ways.",
    ),
    "FragmentLost": CauseText(
        "The {message} was too large for one packet, and a fragment of it was lost before {place}.",
        "Keep answers small (EDNS buffer size 1232), or find what drops fragments: many firewalls do.",
    ),
    "LateReply": CauseText(
        "The reply came {delay} after the query, when the client had closed its socket.",
        "Look at what made the reply late: the server, its upstream, or an attempt that was lost before.",
    ),
    "KernelDrop": CauseText(
        "The kernel dropped the {message} in {place}: {reason}.",
        "The reason and the kernel function name what refused it; look there first.",
    ),
    "ServerNoReply": CauseText(
        "The query reached the server at {address} and nothing came back.",
        "Look at the DNS server: overloaded, stopped, or configured to drop this query.",
    ),
    "LeftNode": CauseText(
        "The query left this node by {interface} and nothing came back.",
        "Look beyond the node: security groups, ACLs, the underlay, a provider's query limit, the server's node.",
    ),
    "ServerError": CauseText(
        "The DNS server itself answered {rcode}.",
        "Look at the server's configuration: no zone or upstream for this name, or its concurrency limit.",
    ),
    "UpstreamTCPUnavailable": CauseText(
        "The DNS server asked its upstream {address} over TCP and got no connection.",
        "Let the server prefer UDP upstream (CoreDNS: prefer_udp; NodeLocal: no force_tcp), or open TCP port 53 there.",
    ),
    "UpstreamTimeout": CauseText(
        "The DNS server asked its upstream {address} and got no answer.",
        "Look at the network from the DNS server to that upstream, and at the provider's query limit for this node.",
    ),
    "UpstreamError": CauseText(
        "The DNS server relayed {rcode} from its upstream{address}.",
        "Ask whoever runs the upstream, with the name, the time and this node.",
    ),
    "Unknown": CauseText(
        "The {message} was last seen {place} and then no more; nothing seen here says why.",
        "The path shows the last hop; look at what comes behind it.",
    ),
}
