"""Who had an address, and which endpoints a Service had, at any time: also while pods come, go and take over."""

from agent.context.cluster import Backends, Outage, Pod, Service
from agent.enrich.kube import addresses, endpoints
from agent.enrich.kube.endpoints import Endpoints, Slices
from agent.enrich.kube.facts import EndpointFacts, PodFacts, ServiceFacts, SliceFacts, packed
from agent.enrich.kube.mirror import UNRESTRICTED, Mirror, Step
from agent.enrich.kube.pods import Pods
from agent.enrich.kube.services import Services
from agent.hop.endpoint import Endpoint
from agent.hop.record import TCP, UDP
from agent.session.model import SECOND_NS

NOW = 1_795_268_608
A, B = "10.244.1.10", "10.244.1.11"
DNS = (UDP, "dns")
KUBE_DNS = ("kube-system", "kube-dns")


def ns(second: float) -> int:
    """A moment of these tests."""
    return int((NOW + second) * SECOND_NS)


def data(address: str) -> bytes:
    found = packed(address)
    assert found is not None
    return found


def pod(
    name: str, *at: str, start: float = 0, ready: float | None = None, finished: float | None = None, local=None
) -> PodFacts:
    return PodFacts(
        key=f"uid-{name}",
        pod=Pod(f"uid-{name}", "shop", name, None, "node-a", False, "ClusterFirst", ()),
        addresses=tuple(map(data, at)),
        start_ns=ns(start),
        ready_ns=None if ready is None else ns(ready),
        finished_ns=None if finished is None else ns(finished),
        node_local=local,
    )


def name_at(pods: Pods, address: str, second: float) -> str | None:
    found = pods.at(data(address), ns(second))
    return found.name if found else None


class Told:
    """Pods as the API tells of them, one after the other."""

    def __init__(self) -> None:
        self.pods = Pods()
        self._known: dict[str, PodFacts] = {}

    def put(self, facts: PodFacts, second: float) -> None:
        self.pods.update_here(self._known.get(facts.key), facts, ns(second))
        self._known[facts.key] = facts

    def delete(self, name: str, second: float) -> None:
        self.pods.update_here(self._known.pop(f"uid-{name}"), None, ns(second))

    def at(self, address: str, second: float) -> str | None:
        return name_at(self.pods, address, second)


def test_a_pod_has_its_addresses_from_its_start_on():
    told = Told()
    told.put(pod("cart", A, "fd00::a", start=0), 2)
    assert told.at(A, 1) == told.at(A, 100) == told.at("fd00::a", 1) == "cart"
    assert told.at(A, -1) is None
    assert told.at(B, 1) is None


def test_an_address_belongs_to_nobody_when_its_pod_is_gone():
    told = Told()
    told.put(pod("cart", A), 0)
    told.delete("cart", 10)
    assert told.at(A, 9.9) == "cart"
    assert told.at(A, 10) is None


def test_an_address_that_is_used_again_belongs_to_each_pod_in_its_time():
    told = Told()
    told.put(pod("first", A, start=0), 0)
    told.delete("first", 10)
    told.put(pod("second", A, start=20), 21)
    assert [told.at(A, second) for second in (5, 15, 20.5)] == ["first", None, "second"]


def test_the_pod_whose_containers_have_ended_has_lost_its_address_before_it_is_deleted():
    told = Told()
    told.put(pod("first", A, start=0), 0)
    told.put(pod("first", A, start=0, finished=10), 11)
    assert told.at(A, 9.5) == "first"
    assert told.at(A, 10.5) is None
    told.put(pod("second", A, start=10), 12)
    told.delete("first", 30)
    assert told.at(A, 10.5) == told.at(A, 29) == "second"
    assert told.at(A, 9.5) == "first"


def test_a_completed_pod_that_remains_does_not_keep_its_address():
    told = Told()
    told.put(pod("second", A, start=20), 21)
    told.put(pod("job", A, start=0, finished=10), 22)
    assert [told.at(A, second) for second in (5, 15, 25)] == ["job", None, "second"]


def test_a_pod_that_waited_for_its_address_did_not_have_it_before_the_other_ended():
    told = Told()
    told.put(pod("first", A, start=0), 0)
    told.put(pod("first", A, start=0, finished=100), 100)
    told.delete("first", 102)
    told.put(pod("second", A, start=5, ready=103), 104)
    assert told.at(A, 50) == "first"
    assert told.at(A, 101) == "second"


def test_an_end_that_was_learned_late_gives_way_to_the_next_pods_network():
    told = Told()
    told.put(pod("first", A, start=0), 0)
    told.put(pod("second", A, start=10, ready=12), 13)
    told.delete("first", 60)
    assert told.at(A, 11) == "first"
    assert told.at(A, 12) == told.at(A, 59) == told.at(A, 61) == "second"


def test_pods_that_follow_each_other_within_a_second_are_told_apart():
    told = Told()
    for number in range(5):
        told.put(pod(f"p{number}", A, start=0, ready=0), 0.1 + number / 10)
        told.delete(f"p{number}", 0.15 + number / 10)
    assert [told.at(A, 0.12 + number / 10) for number in range(5)] == [f"p{number}" for number in range(5)]


def test_without_anything_better_the_pod_that_started_last_has_the_address():
    told = Told()
    told.put(pod("first", A, start=0), 0)
    told.put(pod("second", A, start=10), 11)
    assert [told.at(A, second) for second in (9, 10, 11)] == ["first", "second", "second"]


def test_a_pod_whose_address_changes_has_the_new_one_from_then_on():
    told = Told()
    told.put(pod("cart", A, start=0), 0)
    told.put(pod("cart", B, start=0), 10)
    assert (told.at(A, 9), told.at(A, 11)) == ("cart", None)
    assert (told.at(B, 9), told.at(B, 11)) == (None, "cart")


def test_a_pod_that_gets_its_old_address_back_keeps_it():
    told = Told()
    told.put(pod("cart", A), 0)
    told.put(pod("cart", B), 10)
    told.put(pod("cart", A), 20)
    told.pods.forget(ns(1000))
    assert told.at(A, 25) == "cart"
    assert told.at(B, 15) is None


def test_a_deleted_pod_is_known_for_a_while():
    told = Told()
    told.put(pod("cart", A), 0)
    told.delete("cart", 10)
    told.pods.forget(ns(9))
    assert told.at(A, 5) == "cart"
    assert told.pods.by_uid("uid-cart") is not None
    told.pods.forget(ns(11))
    assert told.at(A, 5) is None
    assert told.pods.by_uid("uid-cart") is None


def test_what_is_remembered_of_pods_is_bounded(monkeypatch):
    monkeypatch.setattr(addresses, "MAX_ENDED", 10)
    monkeypatch.setattr("agent.enrich.kube.pods.MAX_DEPARTED", 10)
    told = Told()
    for number in range(50):
        told.put(pod(f"p{number}", f"10.0.0.{number}"), number)
        told.delete(f"p{number}", number + 0.5)
        told.pods.forget(ns(-1000))
    assert told.at("10.0.0.39", 39.2) is None
    assert told.at("10.0.0.40", 40.2) == "p40"
    assert told.pods.by_uid("uid-p39") is None
    assert told.pods.by_uid("uid-p40") is not None
    assert len(told.pods._book._tenancies) == 10


def test_node_local_dns_cache_is_the_newest_one_that_runs():
    told = Told()
    assert told.pods.node_local() is None
    told.put(pod("old", start=0, local=(data(A),)), 0)
    told.put(pod("new", start=10, local=(data(B),)), 10)
    found = told.pods.node_local()
    assert found is not None
    assert (found.pod.name, found.addresses) == ("new", (data(B),))
    told.delete("new", 20)
    found = told.pods.node_local()
    assert found is not None
    assert found.pod.name == "old"
    told.put(pod("old", start=0, finished=30, local=(data(A),)), 30)
    assert told.pods.node_local() is None


class Changes:
    """A mirror, and what it told."""

    def __init__(self, limit: int = 100) -> None:
        self.told: list[tuple[str | None, str | None]] = []
        self.mirror: Mirror[PodFacts] = Mirror(self._changed, limit)

    def _changed(self, old: PodFacts | None, new: PodFacts | None, _ts_ns: int) -> None:
        self.told.append((old.pod.name if old else None, new.pod.name if new else None))

    def list(self, *facts: PodFacts) -> None:
        half = len(facts) // 2
        self.mirror.apply(Step(0, put=facts[:half], restart=True))
        self.mirror.apply(Step(0, put=facts[half:]))
        self.mirror.apply(Step(0, complete=True, selection=UNRESTRICTED))


def test_a_list_tells_what_is_there_and_is_over_when_it_is_complete():
    changes = Changes()
    changes.mirror.apply(Step(0, put=(pod("a"),), restart=True))
    assert not changes.mirror.synced
    changes.mirror.apply(Step(0, complete=True, selection=UNRESTRICTED))
    assert changes.mirror.synced
    assert changes.told == [(None, "a")]


def test_what_a_later_list_lacks_is_gone_and_what_it_repeats_is_no_change():
    changes = Changes()
    changes.list(pod("a"), pod("b"), pod("c"))
    changes.told.clear()
    changes.list(pod("a"), pod("c", A), pod("d"))
    assert changes.told == [("c", "c"), (None, "d"), ("b", None)]


def test_a_list_that_is_broken_off_takes_nothing_away():
    changes = Changes()
    changes.list(pod("a"), pod("b"))
    changes.mirror.apply(Step(0, put=(pod("a"),), restart=True))
    changes.mirror.apply(Step(0, put=(pod("b"),), restart=True))
    assert len(changes.mirror) == 2
    changes.mirror.apply(Step(0, complete=True, selection=UNRESTRICTED))
    assert [facts.pod.name for facts in changes.mirror] == ["b"]


def test_events_change_single_objects():
    changes = Changes()
    changes.list(pod("a"))
    changes.told.clear()
    changes.mirror.apply(Step(0, put=(pod("b"),)))
    changes.mirror.apply(Step(0, gone=(pod("a"),)))
    changes.mirror.apply(Step(0, gone=(pod("never-heard-of"),)))
    assert changes.told == [(None, "b"), ("a", None)]


def test_more_than_the_limit_is_left_out_and_counted():
    changes = Changes(limit=2)
    changes.list(*(pod(f"p{number}") for number in range(5)))
    assert (len(changes.mirror), changes.mirror.left_out) == (2, 3)
    changes.list(pod("p0"))
    assert (len(changes.mirror), changes.mirror.left_out) == (1, 0)


def test_nothing_is_known_of_what_is_no_longer_wanted():
    changes = Changes()
    changes.list(pod("a"))
    changes.mirror.apply(Step(0, restart=True, complete=True))
    assert len(changes.mirror) == 0
    assert not changes.mirror.synced


def endpoint(address: str, name: str | None = None, *, ready: bool = True, published: bool = True) -> EndpointFacts:
    return EndpointFacts(data(address), ready, published, None, name, f"uid-{name}", "node-b")


def part(*members: EndpointFacts, key: str = "slice", service=KUBE_DNS, port: int = 53) -> SliceFacts:
    return SliceFacts(key, service, ((UDP, port, "dns"), (TCP, port, "dns-tcp")), members)


def test_endpoints_of_all_slices_of_a_service_are_one_set():
    known = Endpoints()
    known.update(None, part(endpoint(A), key="one"), ns(0))
    known.update(None, part(endpoint(B, ready=False), key="two"), ns(0))
    served = known.served(KUBE_DNS, DNS)
    assert served.ready == {Endpoint(data(A), 53)}
    assert served.not_ready == {Endpoint(data(B), 53)}
    assert known.served(KUBE_DNS, (TCP, "dns-tcp")).ready == served.ready
    assert known.served(KUBE_DNS, (UDP, "other")).all == known.served(("x", "y"), DNS).all == set()


def test_an_endpoint_that_was_taken_off_is_known_with_its_time():
    known = Endpoints()
    known.update(None, both := part(endpoint(A), endpoint(B)), ns(0))
    known.update(both, one := part(endpoint(A)), ns(10))
    assert known.gone(KUBE_DNS, DNS) == {Endpoint(data(B), 53): ns(10)}
    known.update(one, both, ns(20))
    assert known.gone(KUBE_DNS, DNS) == {}


def test_an_endpoint_that_moves_to_another_slice_is_not_gone():
    known = Endpoints()
    known.update(None, old := part(endpoint(A), key="one"), ns(0))
    known.update(None, part(endpoint(A), key="two"), ns(10))
    known.update(old, None, ns(20))
    assert known.served(KUBE_DNS, DNS).ready == {Endpoint(data(A), 53)}
    assert known.gone(KUBE_DNS, DNS) == {}


def test_an_endpoint_that_is_ready_in_one_slice_is_ready():
    known = Endpoints()
    known.update(None, part(endpoint(A, ready=False), key="one"), ns(0))
    known.update(None, part(endpoint(A), key="two"), ns(0))
    assert known.served(KUBE_DNS, DNS) == ({Endpoint(data(A), 53)}, set())


def test_the_pod_behind_an_endpoint_is_known_until_it_is_taken_off_and_for_earlier_times_longer():
    known = Endpoints()
    known.update(None, facts := part(endpoint(A, "coredns-1")), ns(0))
    backend = Endpoint(data(A), 53)
    holder = known.holder(backend, ns(5))
    assert holder is not None
    assert (holder.namespace, holder.facts.pod) == ("kube-system", "coredns-1")
    known.update(facts, None, ns(10))
    assert known.holder(backend, ns(9)) == holder
    assert known.holder(backend, ns(10)) is None
    assert known.holder(Endpoint(data(A), 54), ns(5)) is None
    known.forget(ns(11))
    assert known.holder(backend, ns(9)) is None
    assert known.gone(KUBE_DNS, DNS) == {}


def test_an_endpoint_that_another_pod_takes_over_is_each_ones_in_its_time():
    known = Endpoints()
    known.update(None, first := part(endpoint(A, "coredns-1")), ns(0))
    known.update(first, part(endpoint(A, "coredns-2")), ns(10))
    later = known.holder(Endpoint(data(A), 53), ns(11))
    assert later is not None
    assert later.facts.pod == "coredns-2"
    assert known.holder(Endpoint(data(A), 53), ns(9)) is None, "rather nobody than the wrong one"


def test_forgetting_an_endpoint_of_one_service_does_not_touch_it_in_another():
    known = Endpoints()
    other = ("kube-system", "kube-dns-upstream")
    known.update(None, part(endpoint(A, "coredns-1")), ns(0))
    known.update(None, gone := part(endpoint(A, "coredns-1"), key="other", service=other), ns(0))
    known.update(gone, None, ns(10))
    known.forget(ns(11))
    assert known.holder(Endpoint(data(A), 53), ns(20)) is not None


def test_what_is_remembered_of_endpoints_is_bounded(monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_GONE", 10)
    known = Endpoints()
    for number in range(50):
        known.update(None, facts := part(endpoint(f"10.0.0.{number}", "x")), ns(number))
        known.update(facts, None, ns(number + 0.5))
        known.forget(ns(-1000))
    # Each of them was an endpoint by UDP and by TCP.
    assert len(known._gone) == len(known._departures) == 10
    assert len(known._holders) <= 6
    assert not known._served


def test_members_of_a_headless_service_are_named():
    known = Slices()
    member = EndpointFacts(data(A), True, False, "web-0", "web-0", "uid", "node-b")
    known.update(None, part(member, service=("shop", "web")), ns(0))
    assert known.members(("shop", "web")) == ((data(A), "web-0", "web-0", False),)
    assert known.members(("shop", "other")) == ()


def test_a_time_without_ready_endpoints_is_known_from_its_beginning_to_its_end():
    known = Endpoints()
    known.update(None, ready := part(endpoint(A)), ns(0))
    assert known.outage(KUBE_DNS, DNS) is None
    known.update(ready, unready := part(endpoint(A, ready=False)), ns(10))
    assert known.outage(KUBE_DNS, DNS) == (ns(10), None)
    known.update(unready, None, ns(20))
    assert known.outage(KUBE_DNS, DNS) == (ns(10), None)
    known.update(None, ready, ns(30))
    assert known.outage(KUBE_DNS, DNS) == (ns(10), ns(30))
    known.forget(ns(31))
    assert known.outage(KUBE_DNS, DNS) is None


def test_a_service_that_never_had_a_ready_endpoint_has_lacked_one_all_the_time():
    known = Endpoints()
    known.update(None, part(endpoint(A, ready=False)), ns(10))
    assert known.outage(KUBE_DNS, DNS) == (0, None)


def test_none_was_ready_only_when_that_is_what_the_list_said_then():
    ready = frozenset({Endpoint(data(A), 53)})
    assert Backends(frozenset(), ready).had_none_ready(ns(1))
    assert not Backends(ready, frozenset()).had_none_ready(ns(1))
    over = Backends(ready, frozenset(), outage=Outage(ns(10), ns(20)))
    assert [over.had_none_ready(ns(second)) for second in (5, 9, 15, 21, 25)] == [False, True, True, True, False]


def test_an_endpoint_was_lacking_only_when_that_is_certain():
    here, gone, unheard = (Endpoint(data(f"10.0.0.{number}"), 53) for number in (1, 2, 3))
    backends = Backends(frozenset({here}), frozenset(), {gone: ns(10)})
    assert not backends.lacked(here, ns(20))
    assert not backends.lacked(gone, ns(9))
    assert backends.lacked(gone, ns(11))
    assert backends.lacked(unheard, ns(0))
    assert not backends._replace(current=False).lacked(unheard, ns(0))


def service(name: str, *at: str, ports: tuple[tuple[int, int, str], ...] = ((UDP, 53, "dns"),)) -> ServiceFacts:
    virtual = tuple(map(data, at))
    return ServiceFacts(("shop", name), Service("shop", name, headless=False, cluster_ips=virtual), virtual, ports)


def test_a_service_is_found_by_its_address_until_it_is_gone():
    known = Services((53,))
    known.update(None, old := service("dns", A), 0)
    assert known.at(data(A)) is old
    known.update(old, new := service("dns", B), 0)
    assert known.at(data(A)) is None
    assert known.at(data(B)) is new
    known.update(new, None, 0)
    assert known.at(data(B)) is None
    assert known.server_names == frozenset()


def test_services_that_share_an_address_are_told_apart_by_port_and_protocol():
    known = Services((53,))
    known.update(None, service("web", A, ports=((TCP, 80, "http"),)), 0)
    known.update(None, udp := service("dns-udp", A), 0)
    known.update(None, tcp := service("dns-tcp", A, ports=((TCP, 53, "dns"),)), 0)
    assert known.port_at(Endpoint(data(A), 53), UDP) == (udp, (UDP, "dns"))
    assert known.port_at(Endpoint(data(A), 53), TCP) == (tcp, (TCP, "dns"))
    assert known.port_at(Endpoint(data(A), 443), TCP) is None
    found = known.at(data(A))
    assert found is not None
    assert found.service.name == "dns-udp"


def test_services_with_a_port_of_dns_are_those_of_servers():
    known = Services((53, 5353))
    known.update(None, service("dns", A), 0)
    known.update(None, service("mdns", B, ports=((UDP, 5353, ""),)), 0)
    known.update(None, service("web", "10.0.0.9", ports=((TCP, 80, "http"),)), 0)
    assert known.server_names == {"dns", "mdns"}


def test_ports_of_dns_are_those_of_the_service_and_not_of_its_servers():
    known = Services((53,))
    known.update(None, service("dns", A, ports=((UDP, 53, "dns"), (TCP, 53, "dns-tcp"), (TCP, 9153, "metrics"))), 0)
    known.update(None, service("mdns", B, ports=((UDP, 5353, ""),)), 0)
    assert list(known.dns_ports()) == [(("shop", "dns"), (UDP, "dns")), (("shop", "dns"), (TCP, "dns-tcp"))]
