"""What the lab's DNS servers know, and the dnsmasq options that make them know it."""

from agent.lab.translation import VIP, VIP6

CLUSTER_NAMES = {
    "kubernetes.default.svc.cluster.local": ("10.96.0.1", "fd00:10:96::1"),
    "kube-dns.kube-system.svc.cluster.local": (VIP, VIP6),
    "redis-master.default.svc.cluster.local": ("10.96.12.7", "fd00:10:96::c07"),
    "api.shop.svc.cluster.local": ("10.96.44.3", "fd00:10:96::2c03"),
}
"""Names the server pods answer themselves; other names under cluster.local do not exist."""

UPSTREAM_NAMES = {
    "www.upstream.test": ("192.0.2.80", "2001:db8::80"),
    "mail.upstream.test": ("192.0.2.25", "2001:db8::25"),
}
"""Names for which the server pods ask the upstream; other names under upstream.test do not exist."""

BIG_NAME = "big.default.svc.cluster.local"
"""Has a TXT record that fits no UDP reply: a client has to come back by TCP."""

ANY_CLUSTER_NAME = "any.cluster.local"
"""The server pods answer every name under it themselves."""
ANY_UPSTREAM_NAME = "any.upstream.test"
"""The upstream answers every name under it."""
_ANY_ADDRESSES = ("192.0.2.99", "2001:db8::99")

_CACHE_ENTRIES = 1000
_BASE = (
    "--conf-file=/dev/null",
    "--keep-in-foreground",
    "--log-facility=-",
    "--user=root",
    "--group=root",
    "--pid-file=",
    "--no-resolv",
    "--no-hosts",
    "--interface=eth0",
    "--bind-interfaces",
    "--local-ttl=30",
    "--neg-ttl=30",
)


def server_arguments(upstream: str, *, cache: bool, port: int) -> list[str]:
    """Return dnsmasq's options for a server pod that listens on this port, and forwards to this upstream."""
    return [
        *_BASE,
        f"--port={port}",
        f"--cache-size={_CACHE_ENTRIES if cache else 0}",
        "--local=/cluster.local/",
        f"--server=/upstream.test/{upstream}",
        *_records(CLUSTER_NAMES),
        *_wildcard(ANY_CLUSTER_NAME),
        f"--txt-record={BIG_NAME},{','.join([200 * 'x'] * 10)}",
    ]


def upstream_arguments() -> list[str]:
    """Return dnsmasq's options for the upstream."""
    return [
        *_BASE,
        "--cache-size=0",
        "--local=/upstream.test/",
        *_records(UPSTREAM_NAMES),
        *_wildcard(ANY_UPSTREAM_NAME),
    ]


def _records(names: dict[str, tuple[str, str]]) -> list[str]:
    return [f"--host-record={name},{v4},{v6}" for name, (v4, v6) in names.items()]


def _wildcard(domain: str) -> list[str]:
    return [f"--address=/{domain}/{address}" for address in _ANY_ADDRESSES]
