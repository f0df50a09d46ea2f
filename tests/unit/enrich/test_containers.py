"""Whose a process or a namespace is, by cgroup paths as runtimes really write them."""

import os
from pathlib import Path

import pytest

from agent.context.cluster import Container
from agent.enrich import containers as module
from agent.enrich.containers import MAX_PROCESSES, RETRY_NS, TICK_NS, Containers, container_of
from agent.enrich.processes import KNOWN_A_SEARCH, SEARCH_SECONDS, NetnsProcesses

SECOND = 1_000_000_000

UID = "6dc88073-2128-40d6-9dbc-0ba508da7fe8"
UID2 = "90b1ecb8-b850-451a-97c6-c073b5ddbb53"
APP = "123cd1db937c3c2d0d7772ef9b0a1c4b0b3dcfcb6b889452a90b2fcb43eae43a"
SIDECAR = "a1c299dc975032f1806601a8cb2fc7be0175969f6018956ade11dc989fbcd952"
PAUSE = "c81572302e4a00c05810fc436ebc0952ed7a0806c58a2b7eddbfb58de4539206"
OTHER = "59db0b93ab678f22ad44e89bfc902a3a03e8aeec5e823f83e670919381cb20cd"

SLICE = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod6dc88073_2128_40d6_9dbc_0ba508da7fe8.slice"
CRIO = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod73dc8baf_43a0_413e_aac2_5eb0868f6c1a.slice"
CRIO_UID = "73dc8baf-43a0-413e-aac2-5eb0868f6c1a"
CRIO_ID = "f52987fbdcc7b29175fb52e01c7917e9d6d2e14550e3a2a7abf739da5a067e31"

PATHS = {
    "containerd, systemd": (f"{SLICE}/cri-containerd-{APP}.scope", UID, APP),
    "containerd, cgroupfs": (
        (
            "/kubepods/burstable/pod4a163a05-439d-484b-8e53-2968bc15824f/"
            "cde6dfaf5007ed65aad2d6aed72af91b0f3d95813492f773286e29ae145d20f4"
        ),
        "4a163a05-439d-484b-8e53-2968bc15824f",
        "cde6dfaf5007ed65aad2d6aed72af91b0f3d95813492f773286e29ae145d20f4",
    ),
    "containerd, systemd only for the kubelet": (
        (
            "/system.slice/containerd.service/kubepods-besteffort-podb41662f7_b03a_4c65_8ef9_6e4e55c3cf27.slice:"
            "cri-containerd:1753b7cbbf62734d812936961224d5bc0cf8f45214e0d5cdd1a781a053e7c48f"
        ),
        "b41662f7-b03a-4c65-8ef9-6e4e55c3cf27",
        "1753b7cbbf62734d812936961224d5bc0cf8f45214e0d5cdd1a781a053e7c48f",
    ),
    "guaranteed pod": (
        f"/kubepods.slice/kubepods-pod2d51509a_fcf0_41cc_b535_57cfeeaf73d1.slice/cri-containerd-{APP}.scope",
        "2d51509a-fcf0-41cc-b535-57cfeeaf73d1",
        APP,
    ),
    "CRI-O, systemd, runc": (f"{CRIO}/crio-{CRIO_ID}.scope", CRIO_UID, CRIO_ID),
    "CRI-O, systemd, crun": (f"{CRIO}/crio-{CRIO_ID}.scope/container", CRIO_UID, CRIO_ID),
    "CRI-O's monitor of a container": (f"{CRIO}/crio-conmon-{CRIO_ID}.scope", CRIO_UID, None),
    "CRI-O, cgroupfs, static pod": (
        (
            "/kubepods/podb53dfa9e2dc9b890f7fadb2770857b03/"
            "crio-bb959773d06ad1a07d469bced637bbc49b6f8573c493fd0548d7f5810eb3e5a8"
        ),
        "b53dfa9e2dc9b890f7fadb2770857b03",
        "bb959773d06ad1a07d469bced637bbc49b6f8573c493fd0548d7f5810eb3e5a8",
    ),
    "CRI-O without the pod's UID (KubeEdge)": (
        "/../crio-45490e76e0878aaa4d9808f7d2eefba37f093c3efbba9838b6d8ab804d9bd814.scope",
        None,
        "45490e76e0878aaa4d9808f7d2eefba37f093c3efbba9838b6d8ab804d9bd814",
    ),
    "Docker, systemd, UID with dashes": (
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c-b29f-11e7-9350-020968147796.slice/"
            "docker-9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961.scope"
        ),
        "2c48913c-b29f-11e7-9350-020968147796",
        "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961",
    ),
    "Docker, cgroupfs": (
        (
            "/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/"
            "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
        ),
        "2c48913c-b29f-11e7-9350-020968147796",
        "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961",
    ),
    "kind, cgroupfs, seen by its node": (
        (
            "/kubelet/kubepods/besteffort/pod0ec90011-b5ae-4efc-8a54-d9fc34119605/"
            "f5cfbbf0ab83c29c42f4c1e84f12ca91ef77a2c39ee9b753b48cfbb743958947"
        ),
        "0ec90011-b5ae-4efc-8a54-d9fc34119605",
        "f5cfbbf0ab83c29c42f4c1e84f12ca91ef77a2c39ee9b753b48cfbb743958947",
    ),
    "kind, static pod": (
        (
            "/kubelet/kubepods/burstable/pod46dac9a538838115821dfd9559149484/"
            "972055640bc63f5c4d894145950cf92cdfb524dcf049fbe6aee47bf23facf297"
        ),
        "46dac9a538838115821dfd9559149484",
        "972055640bc63f5c4d894145950cf92cdfb524dcf049fbe6aee47bf23facf297",
    ),
    "kind, systemd, seen by the machine": (
        (
            "/system.slice/docker-3350ade4226f0adcd9e4e9545d7c2a16a5aa362d12315f2a88e2024cea1246cf.scope/"
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
            "kubelet-kubepods-besteffort-podb6a16766_05ee_446a_8ee5_ff96a817f47c.slice/"
            "cri-containerd-679f3691f7f1b20198548be43b86f265f9fff9be0ac4c973638f5ee89decbca9.scope"
        ),
        "b6a16766-05ee-446a-8ee5-ff96a817f47c",
        "679f3691f7f1b20198548be43b86f265f9fff9be0ac4c973638f5ee89decbca9",
    ),
    "kind, cgroupfs, seen by the machine": (
        (
            "/docker/744ba5524431986481406cfd13382cbeb7e59a4739dec5ff8b458bc821969662/kubelet/kubepods/besteffort/"
            "pod3716cd27-4591-40fc-9dae-3851142b1d51/e06769b086acea415152f733574033db4dc5e81c9a8f6563648fd5f3b60227af"
        ),
        "3716cd27-4591-40fc-9dae-3851142b1d51",
        "e06769b086acea415152f733574033db4dc5e81c9a8f6563648fd5f3b60227af",
    ),
    "kind's node itself": (
        "/docker/744ba5524431986481406cfd13382cbeb7e59a4739dec5ff8b458bc821969662/system.slice/containerd.service",
        None,
        "744ba5524431986481406cfd13382cbeb7e59a4739dec5ff8b458bc821969662",
    ),
    "cgroup namespace, same class of service": (
        (
            "/../../kubepods-besteffort-podfd698699_eabf_4c23_92ef_cf0bbdb78261.slice/"
            "docker-2cc65c162ca1388b6b8d5ccfb701d22fc96675ccf8b2f1590c490c2c4039547f.scope"
        ),
        "fd698699-eabf-4c23-92ef-cf0bbdb78261",
        "2cc65c162ca1388b6b8d5ccfb701d22fc96675ccf8b2f1590c490c2c4039547f",
    ),
    "cgroup namespace, other class of service": (
        (
            "../../../kubepods-burstable.slice/kubepods-burstable-pod562c01d6_6aba_49fe_ae52_61c40c04eca4.slice/"
            "docker-a51a9f7d073f848e7fc59e56e8f11524f330a2175a4ed26327da2dfe0d28015f.scope"
        ),
        "562c01d6-6aba-49fe-ae52-61c40c04eca4",
        "a51a9f7d073f848e7fc59e56e8f11524f330a2175a4ed26327da2dfe0d28015f",
    ),
    "cgroup namespace, cgroupfs": (
        (
            "/../../pod2c48913c-b29f-11e7-9350-020968147796/"
            "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
        ),
        "2c48913c-b29f-11e7-9350-020968147796",
        "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961",
    ),
    "cgroup namespace, this process's own": ("/", None, None),
    "Docker in a pod": (
        f"/kubepods/burstable/pod{UID}/{APP}/docker/{OTHER}",
        UID,
        APP,
    ),
    "kind in a pod": (
        f"/kubepods/burstable/pod{UID}/{APP}/docker/{PAUSE}/kubelet/kubepods/besteffort/pod{UID2}/{OTHER}",
        UID,
        APP,
    ),
    "a container's own cgroups": (f"{SLICE}/cri-containerd-{APP}.scope/system.slice/pod{UID2}/{OTHER}", UID, APP),
    "Docker alone, systemd": (
        "/system.slice/docker-9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d.scope",
        None,
        "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d",
    ),
    "Docker alone, cgroupfs": (f"/docker/{APP}", None, APP),
    "LXC-like, the number alone": (
        "/4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970",
        None,
        "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970",
    ),
    "Podman": (
        "/machine.slice/libpod-ba2f357a1a56ae4c263d4f5e8d46e12ceef89a08d7333ca29278e4f119e1b65c.scope/container",
        None,
        "ba2f357a1a56ae4c263d4f5e8d46e12ceef89a08d7333ca29278e4f119e1b65c",
    ),
    "Podman, pod": (f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{APP}.scope", None, APP),
    "Podman's monitor": (
        "/machine.slice/libpod-conmon-6dd05e91f00f99281f70b1fd90a29e5cc30b0dab243cb7cfb6153d8017872394.scope",
        None,
        None,
    ),
    "Kata, virtual CPUs": (f"/kubepods/burstable/pod{UID}/kata_{PAUSE}", UID, None),
    "Kata, sandbox_cgroup_only": (f"/kubepods/burstable/pod{UID}/{PAUSE}", UID, PAUSE),
    "Kata, the machine": (f"/kata_overhead/{PAUSE}", None, None),
    "Kata, the machine, systemd": (f"/kata-overhead.slice/runtime-rs-{PAUSE}.scope", None, None),
    "the class of service": ("/kubepods.slice/kubepods-besteffort.slice", None, None),
    "the pod": (SLICE, UID, None),
    "kubelet": ("/system.slice/kubelet.service", None, None),
    "session": ("/user.slice/user-1000.slice/session-3.scope", None, None),
    "init": ("/init.scope", None, None),
    "no UID": ("/kubepods/besteffort/pod123/abc", None, None),
    "removed": (f"/kubepods/besteffort/pod{UID}/{APP} (deleted)", UID, APP),
    "half a number": (f"/docker/{APP[:32]}", None, None),
    "more than a number": (f"/docker/{APP}00", None, None),
}


@pytest.mark.parametrize("name", PATHS)
def test_each_runtime_spells_pod_and_container_its_own_way(name: str):
    path, uid, container_id = PATHS[name]
    assert container_of(f"0::{path}\n") == Container(uid, container_id)


@pytest.mark.parametrize(
    "text",
    [
        f"12:pids:{SLICE}\n11:cpu,cpuacct:/\n1:name=systemd:{SLICE}/cri-containerd-{APP}.scope\n0::/\n",
        f"2:cpu:/docker/{OTHER}\n1:name=systemd:{SLICE}/cri-containerd-{APP}.scope\n0::/system.slice/containerd.service\n",
    ],
)
def test_of_several_hierarchies_the_one_counts_that_says_most(text: str):
    assert container_of(text) == Container(UID, APP)


@pytest.mark.parametrize("text", ["", "\n", "0::\n", "nonsense", ":::::", "0::/\udcff\n"])
def test_a_cgroup_file_that_says_nothing_is_nobody(text: str):
    assert container_of(text) == Container(None, None)


class Proc:
    """A directory that looks like /proc; time stands still unless it is set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_ns = 1_000 * SECOND
        (root / "2").mkdir()
        (root / "2/comm").write_text("kthreadd\n")
        self.netns: dict[str, Path] = {}
        self.home = self.process(1, "host", "/init.scope", name="systemd")

    def process(
        self, pid: int, netns: str, cgroup: str = "/", *, name: str = "sleep", started_ns: int | None = None
    ) -> int:
        """Add one that starts now; the number of its namespace."""
        folder = self.root / str(pid)
        (folder / "ns").mkdir(parents=True)
        if netns not in self.netns:
            self.netns[netns] = self.root / f"netns-{netns}"
            self.netns[netns].touch()
        (folder / "ns/net").hardlink_to(self.netns[netns])
        (folder / "cgroup").write_text(f"0::{cgroup}\n")
        ticks = (self.now_ns if started_ns is None else started_ns) // TICK_NS
        (folder / "stat").write_text(f"{pid} ({name}) S 1 1 1 0 -1 4194560 {'0 ' * 12}{ticks} 5615616 231 0\n")
        return self.number(netns)

    def number(self, netns: str) -> int:
        return self.netns[netns].stat().st_ino

    def end(self, pid: int) -> None:
        gone = self.root / str(pid)
        for path in sorted(gone.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        gone.rmdir()

    def move(self, pid: int, netns: str) -> None:
        (self.root / str(pid) / "ns/net").unlink()
        (self.root / str(pid) / "ns/net").hardlink_to(self.netns[netns])

    def pass_time(self, ns: int = SECOND + 1) -> int:
        self.now_ns += ns
        return self.now_ns

    def processes(self) -> NetnsProcesses:
        return NetnsProcesses(self.root, clock=lambda: self.now_ns / SECOND)

    def containers(self) -> Containers:
        return Containers(self.processes(), clock=lambda: self.now_ns, suspended=lambda: 0)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
def pod(proc: Proc) -> int:
    """A pod with its pause container, two others and a monitor in the node's namespace; the number of its namespace."""
    netns = proc.process(100, "pod", f"{SLICE}/cri-containerd-{PAUSE}.scope", name="pause")
    proc.pass_time()
    proc.process(101, "pod", f"{SLICE}/cri-containerd-{APP}.scope", name="php-fpm: pool (a) b")
    proc.process(102, "pod", f"{SLICE}/cri-containerd-{SIDECAR}.scope", name="envoy")
    proc.process(103, "host", f"{SLICE}/crio-conmon-{APP}.scope", name="conmon")
    proc.pass_time()
    return netns


@pytest.mark.usefixtures("pod")
def test_each_process_is_in_the_container_of_its_own_cgroup(proc: Proc):
    known = proc.containers()
    assert known.of_process(101, proc.now_ns) == Container(UID, APP)
    assert known.of_process(102, proc.now_ns) == Container(UID, SIDECAR)
    assert known.of_process(103, proc.now_ns) == Container(UID, None)
    assert known.of_process(1, proc.now_ns) is None
    assert known.of_process(4711, proc.now_ns) is None


def test_a_namespace_is_its_pods_whatever_the_number_of_containers(proc: Proc, pod: int):
    assert proc.containers().of_netns(pod, proc.now_ns) == Container(UID, None)


def test_the_nodes_own_namespace_is_nobodys_although_pods_share_it(proc: Proc):
    proc.process(200, "host", f"{SLICE}/cri-containerd-{APP}.scope", name="node-cache")
    known = proc.containers()
    assert known.of_netns(proc.home, proc.now_ns) is None
    assert known.of_sender(proc.home, 200, proc.now_ns) == Container(UID, APP)
    assert known.of_sender(proc.home, 1, proc.now_ns) is None
    assert known.of_sender(proc.home, None, proc.now_ns) is None


def test_a_packet_older_than_the_process_is_not_its(proc: Proc, pod: int):
    sent_ns = proc.now_ns
    proc.end(101)
    proc.pass_time()
    proc.process(101, "pod", f"{SLICE}/cri-containerd-{SIDECAR}.scope")
    known = proc.containers()
    assert known.of_process(101, sent_ns) is None
    assert known.of_process(101, proc.now_ns) == Container(UID, SIDECAR)
    assert known.of_sender(pod, 101, sent_ns) == Container(UID, None)


@pytest.mark.usefixtures("pod")
def test_a_number_that_is_used_again_is_the_new_process_from_its_start_on(proc: Proc):
    known = proc.containers()
    assert known.of_process(101, proc.now_ns) == Container(UID, APP)
    proc.end(101)
    proc.process(101, "host", f"/docker/{OTHER}", started_ns=proc.pass_time())
    assert known.of_process(101, proc.pass_time()) == Container(None, OTHER)


@pytest.mark.usefixtures("pod")
def test_a_process_that_is_gone_counts_for_as_long_as_it_was_seen_to_live(proc: Proc):
    known = proc.containers()
    sent_ns = proc.now_ns - 5
    assert known.of_process(101, sent_ns) == Container(UID, APP)
    seen_ns = proc.pass_time()
    assert known.of_process(101, seen_ns) == Container(UID, APP)
    proc.end(101)
    proc.pass_time()
    assert known.of_process(101, seen_ns) == Container(UID, APP)
    assert known.of_process(101, sent_ns) == Container(UID, APP)
    assert known.of_process(101, seen_ns + 1) is None


def test_a_process_that_its_runtime_has_yet_to_move_is_looked_at_again(proc: Proc):
    proc.process(300, "host", "/system.slice/containerd.service", name="runc:[2:INIT]")
    known = proc.containers()
    assert known.of_process(300, proc.now_ns) is None
    (proc.root / "300/cgroup").write_text(f"0::{SLICE}/cri-containerd-{APP}.scope\n")
    assert known.of_process(300, proc.pass_time()) == Container(UID, APP)


@pytest.mark.usefixtures("pod")
def test_processes_of_another_pid_namespace_are_not_taken_for_those_of_the_records(proc: Proc):
    (proc.root / "2/comm").write_text("bash\n")
    assert proc.containers().of_process(101, proc.now_ns) is None


def test_time_that_the_machine_slept_does_not_count(proc: Proc):
    proc.process(300, "pod", f"/docker/{APP}", started_ns=proc.now_ns + 500 * SECOND)
    known = Containers(proc.processes(), clock=lambda: proc.now_ns, suspended=lambda: 500 * SECOND)
    assert known.of_process(300, proc.now_ns) == Container(None, APP)
    assert known.of_process(300, proc.now_ns - SECOND) is None


def test_a_visitor_in_a_pods_namespace_does_not_make_it_his(proc: Proc, pod: int):
    proc.process(50, "pod", f"/kubepods/besteffort/pod{UID2}/{OTHER}", name="nsenter")
    proc.pass_time()
    known = proc.containers()
    assert known.of_netns(pod, proc.now_ns) == Container(UID, None)
    assert known.of_sender(pod, 50, proc.now_ns) == Container(UID, None)
    assert known.of_process(50, proc.now_ns) == Container(UID2, OTHER)


def test_a_program_of_the_node_in_a_pods_namespace_is_counted_as_the_pod(proc: Proc, pod: int):
    proc.process(60, "pod", "/system.slice/sshd.service", name="dig")
    assert proc.containers().of_sender(pod, 60, proc.now_ns) == Container(UID, None)


def test_the_sender_in_a_pod_is_one_of_its_containers(proc: Proc, pod: int):
    assert proc.containers().of_sender(pod, 102, proc.now_ns) == Container(UID, SIDECAR)
    assert proc.containers().of_sender(pod, None, proc.now_ns) == Container(UID, None)


def test_a_container_without_kubernetes_has_its_namespace_for_itself(proc: Proc):
    netns = proc.process(400, "docker", f"/system.slice/docker-{APP}.scope")
    proc.process(401, "docker", f"/system.slice/docker-{APP}.scope")
    proc.process(402, "docker", "/user.slice/user-1000.slice/session-3.scope")
    known = proc.containers()
    assert known.of_netns(netns, proc.now_ns) == Container(None, APP)
    assert known.of_sender(netns, 402, proc.now_ns) == Container(None, APP)


def test_containers_that_share_a_namespace_are_told_by_their_processes_only(proc: Proc):
    netns = proc.process(400, "docker", f"/docker/{APP}")
    proc.process(401, "docker", f"/docker/{OTHER}")
    known = proc.containers()
    assert known.of_netns(netns, proc.now_ns) is None
    assert known.of_sender(netns, 401, proc.now_ns) == Container(None, OTHER)


def test_a_namespace_without_containers_is_nobodys(proc: Proc):
    lab = proc.process(500, "lab", "/user.slice/user-0.slice/session-1.scope")
    kata = proc.process(501, "kata", f"/kata_overhead/{PAUSE}", name="qemu-system-x86")
    known = proc.containers()
    assert known.of_netns(lab, proc.now_ns) is None
    assert known.of_netns(kata, proc.now_ns) is None
    assert known.of_netns(987654321, proc.now_ns) is None


def test_gvisor_is_known_by_its_sandbox(proc: Proc):
    netns = proc.process(600, "gvisor", f"{SLICE}/cri-containerd-{PAUSE}.scope", name="exe")
    assert proc.containers().of_sender(netns, 600, proc.now_ns) == Container(UID, PAUSE)


def test_a_pod_that_is_gone_counts_for_as_long_as_it_was_seen_to_live(proc: Proc, pod: int):
    known = proc.containers()
    seen_ns = proc.now_ns
    assert known.of_netns(pod, seen_ns) == Container(UID, None)
    for pid in (100, 101, 102):
        proc.end(pid)
    proc.pass_time()
    assert known.of_netns(pod, seen_ns) == Container(UID, None)
    assert known.of_netns(pod, proc.now_ns) is None
    assert known.of_netns(pod, seen_ns) == Container(UID, None)


def test_a_namespace_number_that_is_used_again_is_the_new_pods(proc: Proc, pod: int):
    known = proc.containers()
    assert known.of_netns(pod, proc.now_ns) == Container(UID, None)
    for pid in (100, 101, 102):
        proc.end(pid)
    proc.pass_time()
    proc.process(700, "pod", f"/kubepods/besteffort/pod{UID2}/{OTHER}")
    started_ns = proc.now_ns
    proc.pass_time(RETRY_NS + SECOND)
    assert known.of_netns(pod, proc.now_ns) == Container(UID2, None)
    assert known.of_netns(pod, started_ns - SECOND) is None


def test_a_pod_without_a_pause_container_outlives_its_first_container(proc: Proc):
    netns = proc.process(800, "pod", f"{CRIO}/crio-{CRIO_ID}.scope")
    known = proc.containers()
    first_ns = proc.now_ns
    assert known.of_netns(netns, first_ns) == Container(CRIO_UID, None)
    proc.pass_time()
    proc.process(801, "pod", f"{CRIO}/crio-{OTHER}.scope")
    proc.pass_time()
    proc.end(800)
    assert known.of_netns(netns, proc.pass_time()) == Container(CRIO_UID, None)
    assert known.of_netns(netns, first_ns) == Container(CRIO_UID, None)


def test_an_answer_for_a_time_that_was_looked_at_costs_no_look(proc: Proc, pod: int):
    known = proc.containers()
    for _ in range(2):
        assert known.of_sender(pod, 101, proc.now_ns) == Container(UID, APP)
        for name in ("cgroup", "stat"):
            (proc.root / "101" / name).unlink(missing_ok=True)


def test_memory_is_bounded_and_what_is_asked_for_often_stays(proc: Proc, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_PROCESSES", 8)
    monkeypatch.setattr(module, "MAX_NAMESPACES", 8)
    assert MAX_PROCESSES > 8
    known = proc.containers()
    numbers = [proc.process(pid, f"pod{pid}", f"/docker/{APP}") for pid in range(1000, 1030)]
    for pid, netns in zip(range(1000, 1030), numbers, strict=True):
        assert known.of_sender(netns, pid, proc.now_ns) == Container(None, APP)
        assert known.of_process(1000, proc.now_ns) is not None
        known.of_netns(pid, proc.now_ns)
    assert len(known._by_pid) == len(known._by_netns) == len(known._empty) == 8
    assert 1000 in known._by_pid


class Counted(NetnsProcesses):
    """Counts what it looks at."""

    __slots__ = ("looks",)

    def netns_of(self, pid: int | str) -> int:
        self.looks.append(int(pid))
        return super().netns_of(pid)


@pytest.fixture
def crowd(proc: Proc) -> Counted:
    """Two thousand processes of the node."""
    for pid in range(10_000, 12_000):
        folder = proc.root / str(pid) / "ns"
        folder.mkdir(parents=True)
        os.link(proc.netns["host"], folder / "net")
    counted = Counted(proc.root, clock=lambda: proc.now_ns / SECOND)
    counted.looks = []
    return counted


def test_a_search_happens_once_a_second_at_most(proc: Proc, crowd: Counted):
    assert crowd.net_of(1) is None
    first = len(crowd.looks)
    assert first >= 2000
    for unknown in range(100):
        assert crowd.net_of(unknown) is None
    assert len(crowd.looks) == first
    proc.pass_time(int(SEARCH_SECONDS * SECOND) + 1)
    assert crowd.net_of(1) is None
    assert len(crowd.looks) > first


def test_later_searches_look_at_what_is_new_and_at_some_of_the_others(proc: Proc, crowd: Counted):
    crowd.net_of(1)
    proc.pass_time()
    crowd.net_of(1)
    proc.pass_time()
    crowd.looks.clear()
    netns = proc.process(20_000, "new")
    assert crowd.net_of(netns) == f"{proc.root}/20000/net"
    assert set(crowd.looks) >= {20_000}
    assert len(crowd.looks) <= KNOWN_A_SEARCH + 2


def test_a_process_that_enters_its_namespace_after_it_was_seen_is_found_at_the_next_search(proc: Proc, crowd: Counted):
    crowd.net_of(1)
    proc.pass_time()
    pod = proc.process(20_000, "pod")
    proc.process(20_001, "host")
    assert crowd.net_of(pod) is not None
    proc.move(20_000, "host")
    proc.move(20_001, "pod")
    proc.pass_time()
    assert crowd.net_of(pod) == f"{proc.root}/20001/net"


def test_every_process_is_looked_at_again_in_time(proc: Proc, crowd: Counted):
    crowd.net_of(1)
    pod = proc.process(20_000, "pod")
    proc.end(20_000)
    proc.move(11_234, "pod")
    for _ in range(2000 // KNOWN_A_SEARCH + 1):
        proc.pass_time()
        crowd.net_of(1)
    assert crowd.net_of(pod) == f"{proc.root}/11234/net"


def test_a_number_used_by_another_process_is_looked_at_like_a_new_one(proc: Proc, crowd: Counted):
    proc.process(20_000, "pod")
    crowd.net_of(1)
    proc.pass_time()
    crowd.net_of(1)
    proc.end(20_000)
    keeper = proc.root / "keeps-the-inode"
    keeper.mkdir()
    other = proc.process(20_000, "other")
    proc.pass_time()
    assert crowd.net_of(other) == f"{proc.root}/20000/net"


def test_the_processes_of_a_namespace_are_all_known(proc: Proc, pod: int):
    assert list(proc.processes().pids_in(pod)) == [100, 101, 102]


def test_without_a_look_at_process_1_this_process_is_taken_for_one_of_the_node(proc: Proc):
    proc.end(1)
    (proc.root / "self/ns").mkdir(parents=True)
    os.link(proc.netns["host"], proc.root / "self/ns/net")
    assert proc.processes().host_netns == proc.home


def test_a_program_of_the_node_in_a_pods_namespace_is_a_visitor_and_one_of_the_pod_is_none(proc: Proc, pod: int):
    proc.process(50, "pod", "/system.slice/ssh.service")
    known = proc.containers()
    for pid in (50, 101):
        known.of_sender(pod, pid, proc.now_ns)
    assert known.is_visitor(UID, 50, proc.now_ns)
    assert not known.is_visitor(UID, 101, proc.now_ns)
    assert not known.is_visitor(UID, 4711, proc.now_ns)
    assert not known.is_visitor(UID, None, proc.now_ns)
