"""What procfs tells of network namespaces, from files with the literal text of real kernels."""

import socket
from pathlib import Path

import pytest

from agent.context.counters import ConntrackCounters, NamespaceCounters
from agent.enrich import counters as live
from agent.enrich import local as local_addresses
from agent.enrich.counters import LOOK_NS, LOOKS_KEPT, MAX_WATCHED, LiveCounters
from agent.enrich.local import LocalAddresses
from agent.enrich.processes import NetnsProcesses
from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.hop.record import TCP, UDP

SECOND = 1_000_000_000

CONNTRACK = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  \
expect_new expect_create expect_delete search_restart
0003fff0  00000001 00000002 00000000 0000000a 00000000 00000000 00000000 00000000 00000003 0000001f 00000004 00000005  \
00000000 00000000 00000000 00000006
0003fff0  00000001 00000002 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000005  \
00000000 00000000 00000000 00000006
"""
SNMP = """\
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens
Tcp: 1 200 120000 -1 107
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 78 2 9 79 7 0 1 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 1000 1000 1000 1000 1000 1000 1000 1000 1000
"""
SNMP6 = """\
Ip6InReceives                   \t44
Udp6InDatagrams                 \t8
Udp6NoPorts                     \t3
Udp6RcvbufErrors                \t5
UdpLite6NoPorts                 \t1000
"""
SOFTNET = """\
0000004e 00000010 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
00001be7 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001
"""
NEIGHBOURS = """\
entries  allocs   destroys hash_grows lookups  hits     res_failed rcv_probes_mcast rcv_probes_ucast periodic_gc_runs \
forced_gc_runs unresolved_discards table_fulls
00000002 00000007 00000012 00000000   0000000f 00000000 00000000   00000000         00000000         00000045         \
00000000       00000000            00000001
00000002 0000000f 00000002 00000001   0000001d 00000004 00000000   00000000         00000000         00000000         \
00000000       00000000            00000010
"""
NAMESPACE = {"stat/nf_conntrack": CONNTRACK, "snmp": SNMP, "snmp6": SNMP6, "softnet_stat": SOFTNET}
HOST = NAMESPACE | {"stat/arp_cache": NEIGHBOURS, "stat/ndisc_cache": NEIGHBOURS}

IP_VS = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0035 rr persistent 10800 FFFFFFFF
  -> 0AF40235:0035      Masq    1      0          2         \n\
UDP  0A60000A:0035 wrr \n\
  -> 0AF40335:0035      Masq    0      0          7         \n\
  -> 0AF40235:14E9      Masq    100    0          12        \n\
UDP  0A60000B:0035 rr ops \n\
UDP  0A60000A:0036 rr \n\
  -> 0AF40335:0036      Masq    1      0          0         \n\
SCTP  0A60000C:0035 rr \n\
  -> 0AF40335:0035      Masq    1      0          0         \n\
FWM  00000001 rr \n\
  -> 0AF40435:0035      Route   1      0          0         \n\
UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr \n\
  -> [fd00:0010:0244:0002:0000:0000:0000:0053]:0035      Masq    1      0          0         \n\
"""
IP_VS_CONN = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
UDP 0AF40105 9EED 0A60000A 0035 0AF40335 0035 UDP             299
TCP 0AF40105 ADED 0A60000A 0035 0AF40235 0035 ESTABLISHED     899
TCP 0AF40105 ADEE 0A60000A 01BB 0AF40235 20FB FIN_WAIT         55
IP  0AF40105 0000 00000001 0000 0AF40435 0035 NONE            100
UDP fd00:0010:0244:0001:0000:0000:0000:00ab D431 fd00:0010:0096:0000:0000:0000:0000:000a 0035 \
fd00:0010:0244:0002:0000:0000:0000:0053 0035 UDP              12
UDP 0AF40106 0001 0A60000A 0035 0AF40235 0035 UDP             1 sip 32323
"""


def endpoint(address: str, port: int = 53) -> Endpoint:
    if ":" in address:
        return Endpoint(socket.inet_pton(socket.AF_INET6, address), port)
    return Endpoint(V4_MAPPED + socket.inet_aton(address), port)


class Proc:
    """A directory that looks like /proc; processes with the same netns file share a namespace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_ns = 100 * SECOND

    def process(self, pid: str, files: dict[str, str], *, in_netns_of: str | None = None) -> int:
        """Add one; the number of its namespace."""
        netns = self.root / pid / "ns/net"
        netns.parent.mkdir(parents=True)
        if in_netns_of is None:
            netns.touch()
        else:
            netns.hardlink_to(self.root / in_netns_of / "ns/net")
        for name, text in files.items():
            self.write(pid, name, text)
        return netns.stat().st_ino

    def write(self, pid: str, name: str, text: str) -> None:
        path = self.root / pid / "net" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def end(self, pid: str) -> None:
        (self.root / pid).rename(self.root / f"gone-{pid}")

    def watch(self) -> LiveCounters:
        """Start to watch it; time stands still unless `now_ns` is set."""
        return LiveCounters(NetnsProcesses(self.root), clock=lambda: self.now_ns)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    made = Proc(tmp_path)
    made.process("self", HOST)
    made.process("1", HOST, in_netns_of="self")
    limit = tmp_path / "sys/net/netfilter/nf_conntrack_max"
    limit.parent.mkdir(parents=True)
    limit.write_text("262144\n")
    return made


def node_netns(proc: Proc) -> int:
    return (proc.root / "self/ns/net").stat().st_ino


def no_ports(count: int) -> str:
    return f"Udp: InDatagrams NoPorts\nUdp: 0 {count}\n"


def test_a_look_has_all_counters(proc: Proc):
    watching: NamespaceCounters = proc.watch()
    before, now = watching.counters(node_netns(proc), 0)
    assert before is None
    assert now is not None
    assert now.ts_ns == proc.now_ns
    assert (now.conntrack_entries, now.conntrack_limit) == (0x3FFF0, 262144)
    assert now.conntrack == (ConntrackCounters(10, 3, 31, 4), ConntrackCounters(0, 0, 0, 0))
    assert (now.neighbour_table_fulls, now.softnet_dropped) == (2 * 17, 17)


def test_udp_counters_are_the_sum_of_both_families_without_udplite(proc: Proc):
    _, now = proc.watch().counters(node_netns(proc), 0)
    assert now is not None
    assert now.udp["InDatagrams"] == 78 + 8
    assert now.udp["NoPorts"] == 2 + 3
    assert now.udp["RcvbufErrors"] == 7 + 5
    assert now.udp["InCsumErrors"] == 1


def test_columns_are_found_by_their_names(proc: Proc):
    proc.write("self", "stat/nf_conntrack", "drop entries insert_failed invalid early_drop\n01 02 03 04 05 \n")
    _, now = proc.watch().counters(node_netns(proc), 0)
    assert now is not None
    assert now.conntrack_entries == 2
    assert now.conntrack == (ConntrackCounters(invalid=4, insert_failed=3, drop=1, early_drop=5),)


def test_what_is_not_there_is_not_known(proc: Proc):
    for name in ("stat/nf_conntrack", "stat/arp_cache", "stat/ndisc_cache", "softnet_stat", "snmp6"):
        for pid in ("self", "1"):
            (proc.root / pid / "net" / name).unlink()
    (proc.root / "sys/net/netfilter/nf_conntrack_max").unlink()
    _, now = proc.watch().counters(node_netns(proc), 0)
    assert now is not None
    assert now[1:4] == (None, None, ())
    assert (now.neighbour_table_fulls, now.softnet_dropped) == (None, None)
    assert now.udp["NoPorts"] == 2


def test_a_conntrack_file_without_a_needed_column_is_not_known(proc: Proc):
    proc.write("self", "stat/nf_conntrack", "entries drop\n01 02\n")
    _, now = proc.watch().counters(node_netns(proc), 0)
    assert now is not None
    assert (now.conntrack_entries, now.conntrack) == (None, ())


def test_a_namespace_without_a_process_is_not_known(proc: Proc):
    gone = proc.process("77", NAMESPACE)
    proc.end("77")
    assert proc.watch().counters(gone, 0) == (None, None)
    assert proc.watch().ipvs(gone) is None


def test_the_look_before_is_the_newest_that_was_over_by_then(proc: Proc):
    pod = proc.process("77", NAMESPACE)
    watching = proc.watch()
    watching.interest(pod)
    for count in range(5):
        proc.write("77", "snmp", no_ports(count))
        proc.now_ns = (10 + count) * SECOND
        watching.poll(proc.now_ns)
    proc.now_ns = 20 * SECOND
    proc.write("77", "snmp", no_ports(9))
    before, now = watching.counters(pod, 12 * SECOND + 500)
    assert before is not None
    assert now is not None
    assert (before.ts_ns, before.udp["NoPorts"]) == (12 * SECOND, 2 + 3)
    assert (now.ts_ns, now.udp["NoPorts"]) == (20 * SECOND, 9 + 3)
    assert watching.counters(pod, 10 * SECOND - 1)[0] is None


def test_this_process_own_namespace_is_always_watched(proc: Proc):
    watching = proc.watch()
    watching.poll(proc.now_ns)
    for netns in range(1, 3 * MAX_WATCHED):
        watching.interest(netns)
    assert watching.counters(node_netns(proc), proc.now_ns)[0] is not None


def test_asking_for_a_namespace_makes_it_one_of_interest(proc: Proc):
    pod = proc.process("77", NAMESPACE)
    watching = proc.watch()
    watching.counters(pod, 0)
    watching.poll(proc.now_ns)
    assert watching.counters(pod, proc.now_ns)[0] is not None


def test_a_namespace_is_looked_at_once_a_second(proc: Proc):
    watching = proc.watch()
    for turn in range(30):
        proc.now_ns = 100 * SECOND + turn * SECOND // 10
        watching.poll(proc.now_ns)
    assert [look.ts_ns for look in watching._watched[node_netns(proc)].looks] == [
        100 * SECOND,
        101 * SECOND,
        102 * SECOND,
    ]


def test_many_namespaces_are_looked_at_over_several_turns(proc: Proc):
    pods = [proc.process(str(pid), NAMESPACE) for pid in range(100, 100 + MAX_WATCHED)]
    watching = proc.watch()
    for pod in pods:
        watching.interest(pod)
    watching.poll(proc.now_ns)
    assert 0 < sum(bool(watched.looks) for watched in watching._watched.values()) < MAX_WATCHED
    for _ in range(MAX_WATCHED):
        watching.poll(proc.now_ns)
    assert all(len(watched.looks) == 1 for watched in watching._watched.values())


def test_the_least_recently_interesting_namespace_makes_room(proc: Proc):
    watching = proc.watch()
    for netns in range(1, MAX_WATCHED):
        watching.interest(netns)
    watching.interest(1)
    watching.interest(1000)
    assert len(watching._watched) == MAX_WATCHED
    assert 2 not in watching._watched
    assert {1, 3, 1000, node_netns(proc)} <= watching._watched.keys()


def test_history_is_bounded(proc: Proc):
    watching = proc.watch()
    for second in range(3 * LOOKS_KEPT):
        proc.now_ns = second * SECOND
        watching.poll(proc.now_ns)
    assert watching.counters(node_netns(proc), (2 * LOOKS_KEPT - 1) * SECOND)[0] is None
    assert watching.counters(node_netns(proc), 2 * LOOKS_KEPT * SECOND)[0] is not None


def test_a_look_from_before_the_lookup_is_not_one_from_now(proc: Proc):
    watching = proc.watch()
    watching.poll(proc.now_ns)
    before, now = watching.counters(node_netns(proc), proc.now_ns)
    assert before is not None
    assert before is not now


def test_a_crowd_of_losses_shares_one_look(proc: Proc):
    watching = proc.watch()
    first = watching.counters(node_netns(proc), 0)[1]
    assert first is not None
    proc.write("self", "snmp", no_ports(50))
    proc.now_ns += live.FRESH_NS - 1
    assert watching.counters(node_netns(proc), 0)[1] is first
    proc.now_ns += 1
    later = watching.counters(node_netns(proc), 0)[1]
    assert later is not None
    assert later.ts_ns == proc.now_ns


@pytest.mark.parametrize(
    ("name", "text"),
    [("snmp", no_ports(0)), ("stat/nf_conntrack", "entries invalid insert_failed drop early_drop\n0 0 0 0 0\n")],
)
def test_the_history_of_another_namespace_with_the_same_number_is_forgotten(proc: Proc, name: str, text: str):
    watching = proc.watch()
    watching.poll(proc.now_ns)
    since = proc.now_ns
    proc.now_ns += SECOND
    proc.write("self", name, text)
    assert watching.counters(node_netns(proc), since)[0] is None


def test_a_namespace_that_stays_gone_is_no_longer_looked_for(proc: Proc):
    pod = proc.process("77", NAMESPACE)
    watching = proc.watch()
    watching.interest(pod)
    watching.poll(proc.now_ns)
    proc.end("77")
    proc.now_ns += LOOK_NS
    watching.poll(proc.now_ns)
    assert pod in watching._watched
    proc.now_ns += LOOKS_KEPT * LOOK_NS
    watching.poll(proc.now_ns)
    assert pod not in watching._watched


def test_a_namespace_whose_process_is_found_later_is_looked_at_then(proc: Proc):
    watching = proc.watch()
    watching._processes.search()
    pod = proc.process("77", NAMESPACE)
    watching.interest(pod)
    watching.poll(proc.now_ns)
    assert watching.latest(pod) is None
    watching._processes._searched = float("-inf")
    proc.now_ns += LOOK_NS
    watching.poll(proc.now_ns)
    assert watching.counters(pod, proc.now_ns)[0] is not None


def test_without_ip_vs_there_is_nothing_of_it(proc: Proc):
    assert proc.watch().ipvs(node_netns(proc)) is None


@pytest.fixture
def ip_vs(proc: Proc) -> Proc:
    proc.write("self", "ip_vs", IP_VS)
    proc.write("self", "ip_vs_conn", IP_VS_CONN)
    return proc


def test_ip_vs_services_have_the_servers_with_a_weight(ip_vs: Proc):
    found = ip_vs.watch().ipvs(node_netns(ip_vs))
    assert found is not None
    assert found.services == {
        (TCP, endpoint("10.96.0.10")): {endpoint("10.244.2.53")},
        (UDP, endpoint("10.96.0.10")): {endpoint("10.244.2.53", 5353)},
        (UDP, endpoint("10.96.0.11")): set(),
        (UDP, endpoint("fd00:10:96::a")): {endpoint("fd00:10:244:2::53")},
    }


def test_ip_vs_connections_tell_the_server_they_are_bound_to(ip_vs: Proc):
    found = ip_vs.watch().ipvs(node_netns(ip_vs))
    assert found is not None
    vip, vip6 = endpoint("10.96.0.10"), endpoint("fd00:10:96::a")
    assert dict(found.connections) == {
        (UDP, endpoint("10.244.1.5", 0x9EED), vip): endpoint("10.244.3.53"),
        (TCP, endpoint("10.244.1.5", 0xADED), vip): endpoint("10.244.2.53"),
        (UDP, endpoint("fd00:10:244:1::ab", 0xD431), vip6): endpoint("fd00:10:244:2::53"),
        (UDP, endpoint("10.244.1.6", 1), vip): endpoint("10.244.2.53"),
    }
    assert len(found.connections) == 4
    assert found.connections.get((UDP, endpoint("10.244.1.5", 7), vip)) is None
    assert found.connections.get((132, endpoint("10.244.1.5", 7), vip)) is None


def test_ip_vs_of_other_ports_is_read_where_they_are_watched(ip_vs: Proc):
    found = LiveCounters(NetnsProcesses(ip_vs.root), ports=(54, 443)).ipvs(node_netns(ip_vs))
    assert found is not None
    assert found.services == {(UDP, endpoint("10.96.0.10", 54)): {endpoint("10.244.3.53", 54)}}
    assert list(found.connections) == [(TCP, endpoint("10.244.1.5", 0xADEE), endpoint("10.96.0.10", 443))]


def test_ip_vs_with_nothing_in_it_is_known_to_be_empty(proc: Proc):
    proc.write("self", "ip_vs", "".join(IP_VS.splitlines(keepends=True)[:3]))
    proc.write("self", "ip_vs_conn", IP_VS_CONN.splitlines(keepends=True)[0])
    assert proc.watch().ipvs(node_netns(proc)) == ({}, {})


def test_ip_vs_is_read_once_a_second(ip_vs: Proc):
    watching = ip_vs.watch()
    first = watching.ipvs(node_netns(ip_vs))
    ip_vs.write("self", "ip_vs_conn", "")
    assert watching.ipvs(node_netns(ip_vs)) is first
    ip_vs.now_ns += SECOND + 1
    later = watching.ipvs(node_netns(ip_vs))
    assert later is not None
    assert len(later.connections) == 0


def test_a_long_connection_table_is_cut_and_that_is_told(ip_vs: Proc, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MAX_IPVS_LINES", 1)
    monkeypatch.setattr(live, "CHUNK_BYTES", 200)
    watching = ip_vs.watch()
    found = watching.ipvs(node_netns(ip_vs))
    assert found is not None
    assert list(found.connections) == [(UDP, endpoint("10.244.1.5", 0x9EED), endpoint("10.96.0.10"))]
    assert watching.reads_cut == 2


def test_a_service_whose_servers_may_be_cut_off_is_left_out(ip_vs: Proc, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "MAX_IPVS_LINES", 1)
    upto = IP_VS.index("  -> 0AF40235:14E9")
    monkeypatch.setattr(live, "CHUNK_BYTES", upto)
    found = ip_vs.watch().ipvs(node_netns(ip_vs))
    assert found is not None
    assert list(found.services) == [(TCP, endpoint("10.96.0.10"))]


def test_a_slow_table_is_cut(ip_vs: Proc):
    watching = ip_vs.watch()

    def crawling() -> int:
        ip_vs.now_ns += SECOND
        return ip_vs.now_ns

    watching._clock = crawling
    watching.ipvs(node_netns(ip_vs))
    assert watching.reads_cut == 2


def test_a_dead_process_is_replaced_by_another_of_its_namespace(proc: Proc):
    pod = proc.process("77", NAMESPACE)
    processes = NetnsProcesses(proc.root)
    assert processes.net_of(pod) == f"{proc.root}/77/net"
    proc.process("78", NAMESPACE, in_netns_of="77")
    proc.end("77")
    processes._searched = float("-inf")
    assert processes.net_of(pod) == f"{proc.root}/78/net"


def test_processes_are_searched_once_a_second_at_most(proc: Proc):
    processes = NetnsProcesses(proc.root)
    assert processes.net_of(1) is None
    pod = proc.process("77", NAMESPACE)
    assert processes.net_of(pod) is None
    processes._searched = float("-inf")
    assert processes.net_of(pod) is not None


def test_local_addresses_are_those_of_the_namespace(proc: Proc):
    trie = "Local:\n  +-- 10.244.1.0/24 2 0 2\n     |-- 10.244.1.5\n        /32 host LOCAL\n     |-- 10.244.1.255\n"
    pod = proc.process("77", {"fib_trie": trie, "if_inet6": f"fd00001002440001{5:016x} 02 80 00 80     eth0\n"})
    local = LocalAddresses(NetnsProcesses(proc.root))
    assert local.is_local(pod, endpoint("10.244.1.5").address)
    assert local.is_local(pod, endpoint("fd00:10:244:1::5").address)
    assert local.is_local(pod, endpoint("127.0.0.53").address)
    assert local.is_local(pod, endpoint("10.244.1.255").address) is False
    assert local.is_local(1, endpoint("10.244.1.5").address) is None


def test_an_address_that_a_namespace_got_just_now_is_its_own(proc: Proc, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(local_addresses.time, "monotonic", lambda: now[0])
    tries = ("     |-- 10.244.1.5\n        /32 host LOCAL\n", "     |-- 10.244.1.6\n        /32 host LOCAL\n")
    pod = proc.process("77", {"fib_trie": tries[0], "if_inet6": ""})
    local = LocalAddresses(NetnsProcesses(proc.root))
    assert local.is_local(pod, endpoint("10.244.1.7").address) is False
    proc.write("77", "fib_trie", "".join(tries))
    assert local.is_local(pod, endpoint("10.244.1.6").address) is False, "between two readings there is a pause"
    now[0] += local_addresses.PAUSE_SECONDS * 1.1
    assert local.is_local(pod, endpoint("10.244.1.6").address)
    assert local.is_local(pod, endpoint("10.244.1.7").address) is False


def test_an_address_that_was_asked_for_too_early_is_looked_for_again(proc: Proc, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(local_addresses.time, "monotonic", lambda: now[0])
    pod = proc.process("77", {"fib_trie": "", "if_inet6": ""})
    local = LocalAddresses(NetnsProcesses(proc.root))
    assert local.is_local(pod, endpoint("10.244.1.6").address) is False
    proc.write("77", "fib_trie", "     |-- 10.244.1.6\n        /32 host LOCAL\n")
    assert local.is_local(pod, endpoint("10.244.1.6").address) is False, "an absent address is looked for once a second"
    now[0] += local_addresses.ABSENT_SECONDS * 1.1
    assert local.is_local(pod, endpoint("10.244.1.6").address)


@pytest.mark.parametrize("has_successor", [False, True])
def test_a_namespace_with_the_number_of_one_that_is_gone_has_addresses_of_its_own(
    proc: Proc, monkeypatch, has_successor
):
    now = [100.0]
    monkeypatch.setattr(local_addresses.time, "monotonic", lambda: now[0])
    pod = proc.process("77", {"fib_trie": "     |-- 10.244.1.5\n        /32 host LOCAL\n", "if_inet6": ""})
    processes = NetnsProcesses(proc.root)
    local = LocalAddresses(processes)
    assert local.is_local(pod, endpoint("10.244.1.5").address)
    if has_successor:
        proc.process("78", {"fib_trie": "", "if_inet6": ""}, in_netns_of="77")
    proc.end("77")
    processes._searched = float("-inf")
    now[0] += local_addresses.PAUSE_SECONDS * 1.1
    assert local.is_local(pod, endpoint("10.244.1.5").address) is not has_successor


def test_of_an_address_that_a_namespace_has_lost_it_is_not_said_that_it_is_not_its_own(proc: Proc, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(local_addresses.time, "monotonic", lambda: now[0])
    pod = proc.process("77", {"fib_trie": "     |-- 10.244.1.5\n        /32 host LOCAL\n", "if_inet6": ""})
    local = LocalAddresses(NetnsProcesses(proc.root))
    assert local.is_local(pod, endpoint("10.244.1.5").address)
    proc.write("77", "fib_trie", "")
    for _ in range(3):
        now[0] += local_addresses.FRESH_SECONDS * 1.1
        assert local.is_local(pod, endpoint("10.244.1.5").address) is None
        assert local.is_local(pod, endpoint("10.244.1.6").address) is False
