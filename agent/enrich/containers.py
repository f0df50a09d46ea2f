"""Which pod and container a process or a network namespace belongs to, by the cgroups of its processes.

Container runtimes name a container's cgroup after it, and the kubelet the one above after the pod's UID. The spellings
differ by runtime (containerd, CRI-O, Docker, Podman), driver (systemd, cgroupfs) and cgroup version, and the beginning
of the path is missing where this process has a cgroup namespace of its own. What all have in common is `pod<uid>`, and
behind it 64 hexadecimal digits. Static pods have the hash of their file for a UID: the API knows it as the annotation
kubernetes.io/config.hash.

Sandboxed runtimes. gVisor: the processes that we see are the sandbox's, in the cgroup of the pod, so the pod is right,
and the container is the pod's sandbox, which is none of those that the API lists. Kata: programs run in a virtual
machine, and the namespace has at most the machine's own processes. With `sandbox_cgroup_only` they are in the pod's
cgroup and say which pod it is; without it they are in /kata_overhead, and nothing is known here: the pod's address
tells who it is.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.context.cluster import Container
from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.enrich.processes import NetnsProcesses

MAX_PROCESSES = 4096
MAX_NAMESPACES = 1024
MAX_LOOKED_AT = 64
"""Processes of one namespace whose cgroup is read: 50 µs each."""
RETRY_NS = SECOND_NS
"""How long no container is looked for where none was found; the next time twice as long, and so on."""
MAX_RETRY_NS = 64 * SECOND_NS
TICK_NS = SECOND_NS // os.sysconf("SC_CLK_TCK")
START_FIELD = 19
"""Of /proc/PID/stat, counted from behind the name: starttime (man 5 proc_pid_stat)."""
READ_BYTES = 1 << 16
NOBODY = Container(None, None)

# A cgroup that was removed while its last process ends is followed by " (deleted)".
# The UID of a static pod is the hash of its file, without dashes; systemd turns dashes into underscores.
_POD = re.compile(r"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./: ]|$)")
_CONTAINER = re.compile(r"[/:-]([0-9a-f]{64})(?=[./: ]|$)")
_MONITOR = re.compile(r"-conmon-|/kata_|/kata[_-]overhead")
"""What watches over a container, or is the machine it runs in, has its number in its cgroup too."""


@dataclass(slots=True)
class _Known:
    """What a process or a namespace was found to be, and from when to when that is certain (CLOCK_MONOTONIC)."""

    container: Container
    since_ns: int
    """When the process started that says so."""
    until_ns: int
    """When that process was last seen."""
    pid: int
    """That process."""
    started: int
    """The same as `since_ns`, in the kernel's own words: clock ticks since the machine started."""

    def at(self, ts_ns: int) -> bool:
        """Whether it is certain for that time."""
        return self.since_ns <= ts_ns <= self.until_ns


class _Empty(NamedTuple):
    """A namespace in which no container was found."""

    retry_ns: int
    """When to look again."""
    wait_ns: int
    """How long to leave it at that if it still has none."""


def suspended_ns() -> int:
    """By how much CLOCK_BOOTTIME, which starts of processes are told in, is ahead of the records' CLOCK_MONOTONIC."""
    # Who is interrupted between the two readings sees too little.
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())


@dataclass(slots=True)
class Containers:
    """Answers for every session that is printed, from memory wherever it can.

    All times are CLOCK_MONOTONIC in nanoseconds, as in the records: pids and numbers of namespaces are used again, so
    the question is always who it was then. Of what is gone, the answer holds for as long as it was seen to live.
    """

    processes: NetnsProcesses
    clock: Callable[[], int] = time.monotonic_ns
    suspended: Callable[[], int] = suspended_ns
    _by_pid: dict[int, _Known] = field(default_factory=dict)
    _by_netns: dict[int, _Known] = field(default_factory=dict)
    _empty: dict[int, _Empty] = field(default_factory=dict)
    """Namespaces without a container."""
    _node_pids: bool | None = None

    def of_sender(self, netns: int, pid: int | None, ts_ns: int) -> Container | None:
        """Who sent a packet: the pod of the namespace, and the container of the process if it is one of that pod's.

        Args:
            netns: where the packet left its socket.
            pid: the sending process in the node's PID namespace; None when it is not known.
            ts_ns: when that was.
        """
        process = None if pid is None else self.of_process(pid, ts_ns)
        lives_in = self.of_netns(netns, ts_ns)
        if lives_in is None or lives_in.pod_uid is None:
            return process or lives_in
        of_pod = process is not None and process.pod_uid == lives_in.pod_uid
        return process if of_pod else lives_in

    def of_process(self, pid: int, ts_ns: int) -> Container | None:
        """Pod and container of the process that had this number then; None for programs of the node itself.

        Needs no capability, but the node's own /proc: another PID namespace has other numbers.
        """
        known = self._by_pid.pop(pid, None)
        if known is None or not known.at(ts_ns):
            known = self._look_at_process(pid, known) if self._are_node_pids() else None
        if known is None:
            return None
        self._by_pid[pid] = known
        _bound(self._by_pid, MAX_PROCESSES)
        return known.container if known.at(ts_ns) and known.container != NOBODY else None

    def is_visitor(self, pod_uid: str, pid: int | None, ts_ns: int) -> bool:
        """Whether the process that had this number then is known to run outside the pod: it entered its namespace."""
        known = None if pid is None else self._by_pid.get(pid)
        return known is not None and known.at(ts_ns) and known.container.pod_uid != pod_uid

    def of_netns(self, netns: int, ts_ns: int) -> Container | None:
        """The pod that lived in the namespace then; outside Kubernetes the container, if there was one alone.

        None for the node's own namespace: pods with hostNetwork are told by their processes only.
        """
        if netns == self.processes.host_netns:
            return None
        known = self._by_netns.pop(netns, None)
        if known is None or not known.at(ts_ns):
            known = self._look_at_netns(netns, known)
        if known is None:
            return None
        self._by_netns[netns] = known
        _bound(self._by_netns, MAX_NAMESPACES)
        return known.container if known.at(ts_ns) else None

    def _are_node_pids(self) -> bool:
        """Whether the numbers in this /proc are those of the records: process 2 is the parent of all kernel threads."""
        if self._node_pids is None:
            self._node_pids = _read(f"{self.processes.proc}/2/comm").strip() == "kthreadd"
        return self._node_pids

    def _look_at_process(self, pid: int, known: _Known | None) -> _Known | None:
        now_ns = self.clock()
        started = self._started(pid)
        if started is None:
            return known
        if known is not None and known.started == started and known.container != NOBODY:
            known.until_ns = now_ns
            return known
        # Of nobody it may be because the runtime had not moved it to its cgroup yet: read again whenever asked.
        return self._known(self._container(pid), pid, started, now_ns)

    def _look_at_netns(self, netns: int, known: _Known | None) -> _Known | None:
        now_ns = self.clock()
        if known is not None and self._is_still_in(netns, known):
            known.until_ns = now_ns
            return known
        empty = self._empty.pop(netns, _Empty(now_ns, RETRY_NS))
        if now_ns < empty.retry_ns:
            self._empty[netns] = empty
            return known
        found = self._first_in(netns, now_ns)
        if found is None and self.processes.search():
            found = self._first_in(netns, now_ns)
        if found is None:
            self._empty[netns] = _Empty(now_ns + empty.wait_ns, min(2 * empty.wait_ns, MAX_RETRY_NS))
            _bound(self._empty, MAX_NAMESPACES)
            return known
        if known is not None and known.container == found.container:
            # A pod without a pause container: what started first has ended, the pod goes on.
            found.since_ns = min(found.since_ns, known.since_ns)
        return found

    def _is_still_in(self, netns: int, known: _Known) -> bool:
        return self.processes.netns_of(known.pid) == netns and self._started(known.pid) == known.started

    def _first_in(self, netns: int, now_ns: int) -> _Known | None:
        """What the oldest containerised process of a namespace is: a visitor (nsenter) comes later."""
        found = sorted(self._contained(netns))
        if not found:
            return None
        started, pid, oldest = found[0]
        if oldest.pod_uid is not None:
            container = Container(oldest.pod_uid, None)
        elif all(container == oldest for _, _, container in found):
            container = oldest
        else:
            return None
        return self._known(container, pid, started, now_ns)

    def _known(self, container: Container, pid: int, started: int, now_ns: int) -> _Known:
        since_ns = started * TICK_NS - self.suspended()
        return _Known(container, since_ns, until_ns=now_ns, pid=pid, started=started)

    def _contained(self, netns: int) -> Iterator[tuple[int, int, Container]]:
        """Start, number and container of processes in the namespace that are in one."""
        for pid, _ in zip(self.processes.pids_in(netns), range(MAX_LOOKED_AT), strict=False):
            container, started = self._container(pid), self._started(pid)
            if container != NOBODY and started is not None:
                yield started, pid, container

    def _container(self, pid: int) -> Container:
        return container_of(_read(f"{self.processes.proc}/{pid}/cgroup"))

    def _started(self, pid: int) -> int | None:
        """When a process started, in clock ticks since boot; None when it is gone."""
        stat = _read(f"{self.processes.proc}/{pid}/stat")
        # The name may contain anything, spaces and parentheses too.
        return int(stat.rpartition(")")[2].split()[START_FIELD]) if stat else None


def container_of(cgroup: str) -> Container:
    """What the text of /proc/PID/cgroup says: of all hierarchies the one that says most."""
    best = NOBODY
    for line in cgroup.splitlines():
        found = _in_path(line.split(":", 2)[-1])
        if found.pod_uid is not None and found.container_id is not None:
            return found
        if best == NOBODY or (found.pod_uid is not None and best.pod_uid is None):
            best = found
    return best


def _in_path(path: str) -> Container:
    """The first pod of a cgroup path and the first container in it: what runs in there is nested in it (kind, dind)."""
    pod = _POD.search(path)
    container = None if _MONITOR.search(path) else _CONTAINER.search(path, pod.end() if pod else 0)
    return Container(pod[1].replace("_", "-") if pod else None, container[1] if container else None)


def _bound(known: dict[int, _Known] | dict[int, _Empty], most: int) -> None:
    """Forget what was asked for longest ago."""
    if len(known) > most:
        del known[next(iter(known))]


def _read(path: str) -> str:
    """A small file of procfs; nothing when it is gone. A quarter of what pathlib takes."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
