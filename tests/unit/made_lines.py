"""Session lines of a node that is broken in a few ways, in `tests/fixtures/lines/node-a.jsonl`.

`python -m tests.unit.made_lines > tests/fixtures/lines/node-a.jsonl` writes them anew.
No capture shows what the kernel dropped, so the hops are made here, as the kernel program records them.
"""

from __future__ import annotations

import msgspec

from agent.context.cluster import Pod, Service
from agent.context.who import Who
from agent.explain.rules import explain
from agent.export.line import Context, build
from tests.unit.conftest import CLIENT, MS, POD, SECOND, START, Lookup, PlainHop, World, dropped

WALL = 1_795_239_674_352_334_704
OTHER_CLIENT, OTHER_POD = 4026532178, "172.20.2.26"
CART = Pod("1", "shop", "cart-7d9f-x2x", "Deployment/cart", "node-a", False, "ClusterFirst", ())
TILL = Pod("2", "shop", "till-5c4b-9kq", "Deployment/till", "node-a", False, "ClusterFirst", ())
COREDNS = Pod("3", "kube-system", "coredns-7d56l", "Deployment/coredns", "node-a", False, "Default", ())
KUBE_DNS = Service("kube-system", "kube-dns", False, ())
IN_FORWARD = ("nft_do_chain", "nf_hook_slow", "ip_forward")
CLUSTER = "svc.cluster.local."


def cart(name: str, number: int) -> Lookup:
    """A lookup of the pod `cart`."""
    return Lookup(name=name, port=40000 + number, identifier=number)


def till(name: str, number: int) -> Lookup:
    """A lookup of the pod `till`."""
    client = (OTHER_POD, 40000 + number)
    return Lookup(name=name, client=client, client_netns=OTHER_CLIENT, identifier=number, comm=b"java", tgid=7501)


def forbidden(hops: list[PlainHop], lookup: Lookup) -> list[PlainHop]:
    """The query as a rule in FORWARD meets it, where its address is translated."""
    return dropped(hops, 2, location="nft_do_chain", stack=IN_FORWARD, destination=lookup.backend)


def parts() -> list[list[PlainHop]]:
    """What happens on the node."""
    refused = [cart(f"redis-master.default.{CLUSTER}", 1), till(f"stock.shop.{CLUSTER}", 2)]
    late = cart(f"redis-slave.default.{CLUSTER}", 3)
    retried, failing, fine = cart("www.example.com.", 4), till("www.example.net.", 5), cart(f"stock.shop.{CLUSTER}", 6)
    again = START + 15 * SECOND
    return [
        *(forbidden(lookup.query(START + number * SECOND), lookup) for number, lookup in enumerate(refused)),
        forbidden(late.query(START + 8 * SECOND), late),
        dropped(retried.query(START + 10 * SECOND), 3, "QDISC_DROP", "__dev_queue_xmit"),
        [*retried.query(again), *retried.reply(again + MS)],
        failing.both(START + 16 * SECOND, rcode=2, aa=False),
        fine.both(START + 17 * SECOND),
    ]


def lines() -> list[bytes]:
    """The lines, in the order of time."""
    world = World()
    world.addresses[CLIENT], world.addresses[OTHER_CLIENT] = {POD[0]}, {OTHER_POD}
    found = sorted(world.outcomes(*parts()), key=lambda outcome: outcome.session.first_ns)
    pods = {CLIENT: CART, OTHER_CLIENT: TILL}
    whose = [(outcome, Who(pods[outcome.client_netns], "app", COREDNS, KUBE_DNS)) for outcome in found]
    context = Context("node-a", WALL - START)
    return [msgspec.json.encode(build(outcome, explain(outcome), context, who)) for outcome, who in whose]


if __name__ == "__main__":
    print(b"\n".join(lines()).decode())
