"""The table of `dnstrail check`, with probes that see what the test wants."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import check
from agent.check import FEATURES, Feature, Finding, examine, kernel_release, report, rows
from tests.unit.kube_replay import STATEFUL_SETS, Answer, kubeconfig, recorded, replaying


def feature(probe: Callable[[], Finding], *, name: str = "gills", required: bool = False) -> Feature:
    return Feature(name, "breathe", "no air", "buy gills", probe, required)


def good() -> Finding:
    return Finding(True, "two")


def bad() -> Finding:
    return Finding(False, "none found")


def raising(error: Exception) -> Callable[[], Finding]:
    def probe() -> Finding:
        raise error

    return probe


def test_what_is_there_is_ok_with_what_was_found_and_what_it_is_for():
    text, code = report([feature(good)], colour=False)
    assert "ok       gills                       two (needed to breathe)\n" in text
    assert "with all features" in text
    assert code == 0


def test_an_optional_feature_that_is_missing_limits_and_says_what_is_lost_and_what_to_do():
    text, code = report([feature(bad)], colour=False)
    assert "limited  gills" in text
    assert "none found: no air; buy gills (needed to breathe)" in text
    assert "Capture is possible here: 1 limited." in text
    assert code == 0


def test_a_required_feature_that_is_missing_makes_capture_impossible():
    text, code = report([feature(good), feature(bad, required=True)], colour=False)
    assert "missing  gills" in text
    assert "Capture is impossible here: 1 of" in text
    assert code == 1


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/proc/kallsyms"), ValueError("odd file"), RuntimeError()]
)
def test_a_probe_that_cannot_look_is_unknown_and_no_crash(error: Exception):
    result = examine(feature(raising(error)))
    assert result.status == "unknown"
    assert result.text == (str(error) or "RuntimeError")
    assert report([feature(raising(error))], colour=False)[1] == 0


def test_a_sentence_is_said_once():
    features = [feature(raising(OSError("no BTF")), name=name) for name in ("first", "second")]
    lines = report(features, colour=False)[0].splitlines()
    assert lines[1] == "unknown  first                       no BTF (needed to breathe)"
    assert lines[2] == "unknown  second                      see first"


def test_events_are_looked_at_where_they_are_asked_for(tmp_path: Path):
    with replaying() as server:
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        assert check.probe_events(str(access.path)) == Finding(True, "may be created and updated")
        server.writes["POST"].append(Answer(recorded("forbidden.json"), status=403))
        text, code = report([check.events(str(access.path))], colour=False)
    assert "limited  Kubernetes Events" in text
    assert "no Kubernetes Events are written" in " ".join(text.split())
    assert code == 0


def test_events_without_a_cluster_are_a_limit():
    text = " ".join(report([check.events("off")], colour=False)[0].split())
    assert "limited Kubernetes Events the Kubernetes API is not asked: no Kubernetes Events are written" in text


def test_no_line_is_longer_than_100_columns():
    long = Finding(False, "a rather long sentence with many words " * 8)
    text = report([feature(lambda: long, name=known.name) for known in FEATURES], colour=False)[0]
    assert max(map(len, text.splitlines())) <= 100


def test_every_feature_that_is_missing_would_say_what_it_is_for_or_bring_its_own_sentence():
    assert [one.name for one in FEATURES if not (one.purpose or one.required)] == []
    assert [one.name for one in FEATURES if not one.required and not (one.lost and one.remedy)] == []
    assert all(len(one.name) < check.INDENT - 9 for one in FEATURES)


def test_colour_is_put_around_the_status_alone():
    plain = list(rows([examine(feature(good))], colour=False))
    coloured = list(rows([examine(feature(good))], colour=True))
    assert "\033" not in "".join(plain)
    assert coloured[1].startswith("\033[32mok       \033[0mgills")


@pytest.mark.parametrize(
    ("release", "numbers"), [("6.18.44-fc", (6, 18)), ("5.8.0", (5, 8)), ("4.19-amd64", (4, 19)), ("7.0+", (7, 0))]
)
def test_kernel_release(release: str, numbers: tuple[int, int]):
    assert kernel_release(release)[0] == numbers[0]
    assert str(kernel_release(release)[1]).startswith(str(numbers[1]))


def test_an_old_kernel_is_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "OLDEST_KERNEL", (999, 0))
    assert check.probe_kernel().ok is False


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent.capture.privileges.effective", lambda: 1 << 39)
    finding = check.probe_privileges()
    assert not finding.ok
    assert "CAP_PERFMON" in finding.text
    assert "CAP_BPF" not in finding.text


def test_counters_that_cannot_be_read(tmp_path: Path):
    assert "cannot be read (No such file or directory)" in check.probe_counters(tmp_path / "nf_conntrack").text
    (tmp_path / "nf_conntrack").write_text("heading\n0\n0\n")
    assert check.probe_counters(tmp_path / "nf_conntrack") == Finding(True, "2 CPUs")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (None, "not loaded, so nothing here is translated by it"),
        ("IP Virtual Server version 1.2.1\nProt LocalAddress\n  -> RemoteAddress\n", "0 virtual services"),
        ("heading\nTCP  0A60000A:0035 rr\n  -> 0AF40235:0035\nUDP  0A60000A:0035 rr\n", "2 virtual services"),
    ],
)
def test_ipvs_is_in_order_where_it_is_and_where_it_is_not(tmp_path: Path, table: str | None, text: str):
    if table is not None:
        (tmp_path / "ip_vs").write_text(table)
    assert check.probe_ipvs(tmp_path / "ip_vs") == Finding(True, text)


def test_ipvs_that_cannot_be_read_is_said(tmp_path: Path):
    assert "cannot be read (Is a directory)" in check.probe_ipvs(tmp_path).text


def fake_proc(root: Path, *, comm: str, shown: int, hidden: int) -> Path:
    for pid in range(2, 2 + shown + hidden):
        (root / str(pid)).mkdir()
        (root / str(pid) / "comm").write_text(f"{comm}\n")
        if pid < 2 + shown:
            (root / str(pid) / "ns").mkdir()
            (root / str(pid) / "ns/net").touch()
    return root


def test_a_node_with_one_hidden_process_in_twenty_is_ok(tmp_path: Path):
    proc = fake_proc(tmp_path, comm="kthreadd", shown=19, hidden=1)
    assert check.probe_processes(proc) == Finding(True, "namespaces of 19 of 20 processes")


def test_hidden_processes_are_counted(tmp_path: Path):
    proc = fake_proc(tmp_path, comm="kthreadd", shown=1, hidden=4)
    assert "4 of 5 processes are hidden" in check.probe_processes(proc).text


def test_the_proc_of_a_container_is_known_as_such(tmp_path: Path):
    assert "of this container" in check.probe_processes(fake_proc(tmp_path, comm="nginx", shown=1, hidden=0)).text
    assert "of this container" in check.probe_processes(tmp_path / "empty").text


def test_a_node_that_is_a_container_itself_shows_its_processes(tmp_path: Path):
    proc = fake_proc(tmp_path, comm="systemd-journal", shown=3, hidden=0)
    for process, cgroup in (("1", "0::/../../../init.scope"), ("self", "0::/")):
        (proc / process / "ns").mkdir(parents=True)
        (proc / process / "ns/net").touch()
        (proc / process / "cgroup").write_text(f"{cgroup}\n")
    finding = check.probe_processes(proc)
    assert finding.ok
    assert "a container itself" in finding.text
    (proc / "1/cgroup").write_text("0::/\n")
    assert "of this container" in check.probe_processes(proc).text


def test_sockets_are_seen_where_cgroup_v2_is_mounted_and_may_be_attached_to(tmp_path: Path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")
    assert not check.probe_sockets(mounts, 1 << 12).ok
    mounts.write_text("26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n")
    assert check.probe_sockets(mounts, 1 << 12) == Finding(True, "cgroup v2 at /sys/fs/cgroup/unified")
    assert "CAP_NET_ADMIN" in check.probe_sockets(mounts, 0).text


@pytest.mark.parametrize(("limit", "ok"), [(-1, True), (1 << 30, True), (65536, False)])
def test_locked_memory_matters_on_old_kernels(monkeypatch: pytest.MonkeyPatch, limit: int, *, ok: bool):
    monkeypatch.setattr(check, "kernel_release", lambda: (5, 10))
    monkeypatch.setattr("resource.getrlimit", lambda _which: (limit, limit))
    assert check.probe_memlock().ok is ok


def test_locked_memory_does_not_matter_on_new_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "kernel_release", lambda: (5, 11))
    assert check.probe_memlock().ok


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class BPF: pass\n__version__ = '1.2'", "BCC 1.2"),
        ("x = 1", "is not BCC (PyPI's"),
        ("raise ImportError('no libbcc')", "cannot be imported (no libbcc)"),
        ("raise OSError('libbcc.so.0: not found')", "cannot be imported (libbcc.so.0: not found)"),
        ("import os; os._exit(3)", "ended without output"),
    ],
)
def test_bcc_or_what_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str):
    (tmp_path / "bcc.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = check.probe_bcc()
    assert words in finding.text
    assert finding.ok is (words == "BCC 1.2")


def test_a_directory_that_is_called_bcc_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bcc").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    text = check.probe_bcc().text
    assert "is not installed" in text or text.startswith("BCC")


def test_whatever_capture_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "Capture", lambda _ports, _ring: raising(ZeroDivisionError("odd"))())
    assert check.probe_capture() == Finding(False, "odd")


@pytest.fixture
def _in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("agent.enrich.kube.access.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")


def test_outside_of_a_cluster_its_api_is_not_missed():
    assert check.probe_kubernetes("auto") == Finding(True, "not asked: this is not a pod of a cluster")
    assert check.probe_kubernetes("off") == Finding(True, "not asked")


def test_a_kubeconfig_or_a_cluster_that_is_not_there_is_said(tmp_path: Path):
    assert check.probe_kubernetes(str(tmp_path / "none")) == Finding(False, f"there is no kubeconfig {tmp_path}/none")
    assert "this is no pod of a cluster" in check.probe_kubernetes("in-cluster").text


@pytest.mark.usefixtures("_in_a_pod")
def test_a_pod_without_a_token_is_told_how_to_get_one():
    text, code = report([check.kubernetes("auto")], colour=False)
    assert "has no token in" in text
    assert "automountServiceAccountToken: true" in text
    assert code == 0


@pytest.mark.usefixtures("_in_a_pod")
def test_a_way_to_the_api_server_that_does_not_work_is_said_with_what_that_means(tmp_path: Path):
    (tmp_path / "token").write_text("first")
    text = " ".join(report([check.kubernetes("auto")], colour=False)[0].split())
    assert text.startswith("STATUS FEATURE FINDING limited Kubernetes API the configuration cannot be used: ")
    assert "the ServiceAccount in /var/run/secrets/kubernetes.io/serviceaccount: " in text.replace("- ", "-")
    assert "lines lack names, and the agent does not become ready; in a pod, see its ServiceAccount" in text


def test_an_api_server_that_answers_is_in_order(tmp_path: Path):
    with replaying() as server:
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        assert check.probe_kubernetes(str(access.path)) == Finding(True, "answers, and allows all requests")


def test_what_the_agent_can_do_without_does_not_keep_it_from_being_ready(tmp_path: Path):
    with replaying() as server:
        server.lists[STATEFUL_SETS][0] = Answer(recorded("forbidden.json"), status=403)
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        finding = check.probe_kubernetes(str(access.path))
    assert not finding.ok
    assert finding.text.startswith("the API server forbids to read statefulsets: 403 Forbidden: ")
    assert finding.lost == check.OPTIONAL_LOST


def test_main_prints_the_table_and_returns_the_code(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(check, "FEATURES", (feature(bad, required=True),))
    assert check.main() == 1
    assert capsys.readouterr().out.startswith("STATUS   FEATURE")
