"""`dnstrail check`: can this kernel and this process do it, what is missing, what is lost without it, what to do.

`python -m agent.check` prints the features as the table of `docs/kernels.md`.
"""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.capture import privileges
from agent.capture.cgroup import cgroup2_root
from agent.capture.live import Capture
from agent.enrich.kube.access import AUTO, NO_TOKEN, OFF, access_by, has_no_token
from agent.enrich.kube.errors import NotConfiguredError
from agent.enrich.kube.probe import may_write_events, reach
from agent.enrich.kube.troubles import NO_EVENTS, event_words
from agent.kernel.btf import BtfError, load_kernel
from agent.kernel.casts import cast_id
from agent.kernel.offsets import TRACEPOINTS, conntrack_layout, counter_flags, drop_reasons
from agent.kernel.symbols import KernelSymbols
from agent.kernel.types import KernelTypes, kernel_types
from agent.process import abandon_stdout, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agent.kernel.btf import Btf

OLDEST_KERNEL = (5, 8)
MEMLOCK_FREE_KERNEL = (5, 11)
"""From here on BPF memory counts for the memory cgroup and no longer for RLIMIT_MEMLOCK."""
RING_BYTES = 16 << 20
"""As in `run --ring-size`."""
MEMLOCK_BYTES = 2 * RING_BYTES
REASON_ARGS = 3
RX_SOCKET_ARGS = 4
HIDDEN_LIMIT = 10
"""One hidden process in so many is no matter: some protect themselves even from root."""
BCC_SECONDS = 30
IPVS_SERVICES = ("TCP", "UDP", "SCTP", "FWM")
"""How the lines of virtual services begin (net/netfilter/ipvs/ip_vs_ctl.c: ip_vs_info_seq_show())."""
WIDTH = 100
INDENT = 37
OPTIONAL_LOST = "the agent becomes ready, but works without this information"
COLOURS = {"ok": 32, "limited": 33, "unknown": 33, "missing": 31}

# In a child, so that LLVM is not loaded into this process. Prints one word, and perhaps more about it.
BCC_PROBE = """
import importlib.util
spec = importlib.util.find_spec("bcc")
if spec is None or spec.origin is None:  # None: a directory without a module in it
    print("absent")
else:
    try:
        import bcc
    except Exception as error:
        print("broken", error)
    else:
        print("ok" if hasattr(bcc, "BPF") else "foreign", getattr(bcc, "__version__", ""))
"""
BCC_FAULTS = {
    "absent": "the Python module bcc (BCC) is not installed",
    "foreign": "the Python module bcc that is installed is not BCC (PyPI's project of that name is something else)",
}


class Finding(NamedTuple):
    """What a probe saw: in order or not, and in words."""

    ok: bool
    text: str
    lost: str = ""
    """What is lost, where the feature alone does not tell."""
    remedy: str = ""
    """Likewise what to do."""


class Feature(NamedTuple):
    """One thing dnstrail uses of the machine."""

    name: str
    purpose: str
    lost: str
    """What is lost without it."""
    remedy: str
    probe: Callable[[], Finding]
    required: bool = False
    """Whether capture is impossible without it."""


class Result(NamedTuple):
    """One row: `ok`, `limited` (the rest works), `missing` (capture does not) or `unknown`."""

    status: str
    feature: Feature
    text: str


@functools.cache
def types_found() -> KernelTypes:
    """The kernel's types, looked for once."""
    return kernel_types()


def types() -> Btf:
    """The kernel's types, wherever they come from."""
    return types_found().btf


def kernel_release(release: str = "") -> tuple[int, ...]:
    """Major and minor number of the running kernel, or of this release."""
    major, minor = (release or os.uname().release).split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()))


def probe_privileges() -> Finding:
    """The capabilities without which nothing works."""
    names = privileges.missing()
    held = " and ".join(capability.name for capability in privileges.CAPABILITIES if capability.required)
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return Finding(False, privileges.sentence(names)) if names else Finding(True, f"{user}, with {held}")


def probe_kernel() -> Finding:
    """The ring buffer is from 5.8, though distributions carry it back."""
    release = os.uname().release
    ok = kernel_release() >= OLDEST_KERNEL
    return Finding(ok, release if ok else f"kernel {release} is older than 5.8")


def probe_types() -> Finding:
    """Without types there are no offsets."""
    try:
        return Finding(True, f"{types_found().source}, {types().type_count} types")
    except BtfError as error:
        return Finding(False, str(error))


def probe_tracepoints() -> Finding:
    """The three that the program attaches to."""
    absent = [name for name in TRACEPOINTS if not types().has_tracepoint(name)]
    if absent:
        return Finding(False, f"this kernel has no tracepoint {', '.join(absent)}")
    return Finding(True, ", ".join(TRACEPOINTS))


def probe_kfree_skb() -> Finding:
    """Arguments came over time: location from the start, reason in 5.17, receiving socket in 6.11."""
    count = types().tracepoint_args("kfree_skb")
    extras = [name for name, least in (("reason", REASON_ARGS), ("socket", RX_SOCKET_ARGS)) if count >= least]
    text = f"{count} arguments{', with ' + ' and '.join(extras) if extras else ''}"
    return Finding(count >= REASON_ARGS, text)


def probe_drop_reasons() -> Finding:
    """The kernel's names for the ways a packet can die."""
    count = len(drop_reasons(types()))
    return Finding(count > 0, f"{count} reasons" if count else "this kernel has no drop reasons (before 5.17)")


def probe_conntrack_btf() -> Finding:
    """Where the translation of a packet is found."""
    if types().has_struct("nf_conn"):
        conntrack_layout(types())
        return Finding(True, "built into the kernel" if types_found().built_in else "in the headers")
    try:
        conntrack_layout(load_kernel("nf_conntrack"))
    except BtfError:
        return Finding(False, "no types of nf_conntrack, so the layout of kernels 4.19 to 6.18 is assumed")
    return Finding(True, "BTF of the module nf_conntrack")


def probe_bcc() -> Finding:
    """Debian's package, another project of that name, or none."""
    command = [sys.executable, "-c", BCC_PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BCC_SECONDS)
    word, _, rest = (done.stdout.strip().splitlines() or ["broken it ended without output"])[-1].partition(" ")
    if word == "ok":
        return Finding(True, f"BCC {rest}".rstrip())
    return Finding(False, BCC_FAULTS.get(word) or f"the Python module bcc cannot be imported ({rest})")


def probe_symbols() -> Finding:
    """Hidden by zeros rather than by an error."""
    symbols = KernelSymbols.load()
    if symbols.available:
        return Finding(True, f"{len(symbols)} functions")
    return Finding(False, "/proc/kallsyms shows this process no addresses")


def probe_counters(path: Path = Path("/proc/net/stat/nf_conntrack")) -> Finding:
    """One line a CPU, below a heading; the program itself reads those of the CPU that has the packet."""
    if not counter_flags(types()):
        return Finding(False, "the program cannot find them on this kernel")
    try:
        return Finding(True, f"{len(path.read_text().splitlines()) - 1} CPUs")
    except OSError as error:
        return Finding(False, f"{path} cannot be read ({error.strerror})")


def probe_ipvs(path: Path = Path("/proc/net/ip_vs")) -> Finding:
    """A module of the kernel; without it nothing can be translated by it, so that nothing is missed."""
    try:
        services = [line for line in path.read_text().splitlines() if line.startswith(IPVS_SERVICES)]
    except FileNotFoundError:
        return Finding(True, "not loaded, so nothing here is translated by it")
    except OSError as error:
        return Finding(False, f"{path} cannot be read ({error.strerror})")
    return Finding(True, f"{len(services)} virtual services")


def probe_processes(proc: Path = Path("/proc")) -> Finding:
    """Whether this /proc is the node's, and says which namespaces its processes live in."""
    is_machine = is_kernel_thread(proc / "2")
    if not is_machine and is_of_this_container(proc):
        return Finding(False, "/proc shows only the processes of this container")
    shown = [shows_netns(path) for path in proc.glob("[0-9]*")]
    hidden = shown.count(False)
    if hidden * HIDDEN_LIMIT > len(shown):
        return Finding(False, f"the network namespaces of {hidden} of {len(shown)} processes are hidden from it")
    nested = "" if is_machine else "; this node is a container itself: the containers of its processes are not told"
    return Finding(True, f"namespaces of {len(shown) - hidden} of {len(shown)} processes{nested}")


def is_of_this_container(proc: Path) -> bool:
    """Whether process 1 is in the cgroup of this process, or is not shown at all.

    On a node that is a container (kind), process 1 is that container's, and this one is below it.
    """
    try:
        return (proc / "1/cgroup").read_text() == (proc / "self/cgroup").read_text()
    except OSError:
        return True


def is_kernel_thread(process: Path) -> bool:
    """Whether this is the parent of all kernel threads, which only the node's own PID namespace shows as number 2."""
    try:
        return (process / "comm").read_text().strip() == "kthreadd"
    except OSError:
        return False


def shows_netns(process: Path) -> bool:
    """Whether the namespace of this process can be told."""
    try:
        (process / "ns/net").stat()
    except OSError:
        return False
    return True


def probe_sockets(mounts: Path = Path("/proc/self/mountinfo"), capabilities: int | None = None) -> Finding:
    """Whether the socket programs have a place to attach to, and may."""
    root = cgroup2_root(mounts)
    if root is None:
        return Finding(False, "no cgroup v2 tree is mounted")
    mask = privileges.effective() if capabilities is None else capabilities
    if not privileges.holds(privileges.named("CAP_NET_ADMIN"), mask):
        return Finding(False, "CAP_NET_ADMIN is missing")
    return Finding(True, f"cgroup v2 at {root}")


def probe_kprobes(source: Path = Path("/sys/bus/event_source/devices/kprobe")) -> Finding:
    """Whether the kernel has them; that it refuses them shows only when it is asked, at start."""
    return Finding(True, "available") if source.exists() else Finding(False, "this kernel has no kprobes")


def probe_reads() -> Finding:
    """Both ways read the same; they differ in what a packet costs (docs/costs.md)."""
    if cast_id(types()) is not None:
        return Finding(True, "by plain loads (bpf_rdonly_cast)")
    return Finding(True, "by calls of a helper, which cost more than the plain loads of Linux 6.17 and newer")


def probe_memlock() -> Finding:
    """BPF maps are locked memory on old kernels."""
    if kernel_release() >= MEMLOCK_FREE_KERNEL:
        return Finding(True, "does not apply from kernel 5.11 on")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or limit >= MEMLOCK_BYTES:
        return Finding(True, "large enough")
    return Finding(False, f"RLIMIT_MEMLOCK is {limit} bytes")


def probe_capture() -> Finding:
    """Do it: the one probe that cannot be wrong."""
    begun = time.monotonic()
    try:
        with Capture([53], RING_BYTES) as capture:
            joins = "joined in the kernel" if capture.joins else "read hop by hop, which costs more"
            took = f"loaded and attached in {time.monotonic() - begun:.2f} s, then detached; lookups are {joins}"
            return Finding(True, "; limited: ".join((took, *capture.limits)))
    except Exception as error:  # noqa: BLE001  an attempt that failed is a finding, whatever failed
        return Finding(False, str(error) or type(error).__name__)


def probe_kubernetes(asked: str) -> Finding:
    """Ask the API server what `run --kubernetes` would ask it."""
    try:
        access = access_by(asked)
    except NotConfiguredError as error:
        return Finding(False, str(error))
    if access is None:
        if has_no_token(asked):
            remedy = "set automountServiceAccountToken: true, or --kubernetes off"
            return Finding(False, NO_TOKEN, "lines lack names", remedy)
        return Finding(True, "not asked" if asked == OFF else "not asked: this is not a pod of a cluster")
    reached = reach(access)
    words, remedy = reached.words
    if words:
        return Finding(False, words, "" if not reached.is_enough else OPTIONAL_LOST, remedy)
    return Finding(True, "answers, and allows all requests")


def kubernetes(asked: str) -> Feature:
    """What is no feature of the machine, and looked at like one."""
    return Feature(
        "Kubernetes API",
        "name pods, workloads and Services",
        "lines lack names, and the agent does not become ready",
        "give --kubernetes a kubeconfig, or off",
        functools.partial(probe_kubernetes, asked),
    )


def probe_events(asked: str) -> Finding:
    """Ask whether the Events that `run --events` would write may be written."""
    try:
        access = access_by(asked)
    except NotConfiguredError as error:
        return Finding(False, str(error))
    if access is None:
        return Finding(False, "the Kubernetes API is not asked")
    refusal = may_write_events(access)
    if refusal is None:
        return Finding(True, "may be created and updated")
    words, remedy = event_words(refusal)
    return Finding(False, words, "", remedy)


def events(asked: str) -> Feature:
    """Likewise; only where the option is on."""
    return Feature(
        "Kubernetes Events",
        "say on pods and on the node why lookups fail",
        NO_EVENTS,
        "give --kubernetes in-cluster or a kubeconfig",
        functools.partial(probe_events, asked),
    )


# Purpose, loss and remedy are clauses: the sentence is "what was found: what is lost; what to do".
FEATURES = (
    Feature("privileges", "load tracing programs", "", "", probe_privileges, True),
    Feature(
        "kernel release",
        "have the BPF ring buffer",
        "its BPF ring buffer may be missing, and then capture is impossible",
        "use kernel 5.8 or newer",
        probe_kernel,
    ),
    Feature("types of the kernel", "find fields in kernel structures", "", "", probe_types, True),
    Feature(
        "tracepoints",
        "see packets sent, received and dropped",
        "no capture",
        "use a kernel built with CONFIG_TRACEPOINTS=y and CONFIG_NET=y",
        probe_tracepoints,
        True,
    ),
    Feature(
        "arguments of kfree_skb",
        "learn the reason of a drop",
        "a drop is explained by its kernel function alone, with less certainty",
        "use kernel 5.17 or newer",
        probe_kfree_skb,
    ),
    Feature(
        "drop reasons",
        "name the reason of a drop",
        "a drop is explained by its kernel function alone, with less certainty",
        "use kernel 5.17 or newer",
        probe_drop_reasons,
    ),
    Feature(
        "types of nf_conntrack",
        "follow a lookup through address translation",
        "if the layout differs, the translated server is not shown",
        "load the module nf_conntrack, built with CONFIG_DEBUG_INFO_BTF_MODULES=y",
        probe_conntrack_btf,
    ),
    Feature(
        "python3-bpfcc",
        "compile and load the BPF program",
        "no capture",
        "install the Debian package python3-bpfcc and use the distribution's interpreter, /usr/bin/python3",
        probe_bcc,
        True,
    ),
    Feature(
        "kernel symbols",
        "name the kernel function that dropped a packet",
        "drops have no location and no netfilter hook, so many causes stay unnamed",
        "grant CAP_SYSLOG and set the sysctl kernel.kptr_restrict to 0 or 1",
        probe_symbols,
    ),
    Feature(
        "conntrack counters",
        "distinguish a full connection table and a lost race from a rule",
        "a full table, a lost race and a rule are distinguished with less certainty",
        "load the module nf_conntrack, if this node translates or tracks connections at all",
        probe_counters,
    ),
    Feature(
        "IPVS",
        "follow a lookup that kube-proxy translates in IPVS mode",
        "what translated a lookup, and stale entries, are inferred from the packets alone, with less certainty",
        "let this process read /proc/net/ip_vs",
        probe_ipvs,
    ),
    Feature(
        "processes of the node",
        "know which namespace owns an address",
        "where a silent server lives is inferred from the packets alone, with less certainty",
        "grant CAP_SYS_PTRACE and, in a container, the node's PID namespace (Kubernetes: hostPID: true)",
        probe_processes,
    ),
    Feature(
        "sockets of the node",
        "see DNS over TCP, and datagrams in paged buffers",
        "lookups over TCP are not seen, and very large datagrams in part only",
        "mount cgroup2 (in a container, the host's /sys/fs/cgroup) and grant CAP_NET_ADMIN",
        probe_sockets,
    ),
    Feature(
        "kprobes",
        "know whether an application has read a datagram",
        "a stopped server cannot be distinguished from one that stays silent",
        "use a kernel built with CONFIG_KPROBES=y, and not locked down",
        probe_kprobes,
    ),
    Feature(
        "reads of kernel memory",
        "follow a packet's pointers",
        "each packet costs the kernel more, and nothing is missed",
        "use kernel 6.17 or newer",
        probe_reads,
    ),
    Feature(
        "locked memory",
        "hold the ring buffer",
        f"the kernel may refuse the ring buffer, which needs {MEMLOCK_BYTES}",
        "raise it (ulimit -l, systemd: LimitMEMLOCK=), grant CAP_SYS_RESOURCE, or use a smaller --ring-size",
        probe_memlock,
    ),
    Feature("load and attach", "", "", "", probe_capture, True),
)


def examine(feature: Feature) -> Result:
    """Probe one feature; a probe that cannot look says so instead of failing."""
    try:
        finding = feature.probe()
    except Exception as error:  # noqa: BLE001  the report must come to its end on any machine
        return Result("unknown", feature, str(error) or type(error).__name__)
    if finding.ok:
        return Result("ok", feature, finding.text)
    lost, remedy = finding.lost or feature.lost, finding.remedy or feature.remedy
    clauses = [": ".join(filter(None, (finding.text, lost))), remedy]
    return Result("missing" if feature.required else "limited", feature, "; ".join(filter(None, clauses)))


def rows(results: Iterable[Result], *, colour: bool) -> Iterator[str]:
    """The table; a sentence that was said before is not said again."""
    said: dict[str, str] = {}
    yield f"{'STATUS':<9}{'FEATURE':<{INDENT - 9}}FINDING"
    for result in results:
        name = said.setdefault(result.text, result.feature.name)
        repeated = name != result.feature.name and result.status != "ok"
        yield from row(result._replace(text=f"see {name}" if repeated else sentence(result)), colour=colour)


def sentence(result: Result) -> str:
    """The finding, and what it is needed for."""
    purpose = result.feature.purpose
    return f"{result.text} (needed to {purpose})" if purpose else result.text


def row(result: Result, *, colour: bool) -> Iterator[str]:
    """One result on as many lines as it takes."""
    status = f"{result.status:<9}"
    if colour:
        status = f"\033[{COLOURS[result.status]}m{status}\033[0m"
    first, *more = textwrap.wrap(result.text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    yield f"{status}{result.feature.name:<{INDENT - 9}}{first}"
    yield from (f"{'':<{INDENT}}{line}" for line in more)


def conclusion(results: list[Result]) -> tuple[str, int]:
    """The last line and the exit code."""
    counts = {status: sum(result.status == status for result in results) for status in COLOURS}
    if counts["missing"]:
        return f"Capture is impossible here: {counts['missing']} of the features that it requires are missing.", 1
    worse = [f"{counts[status]} {status}" for status in ("limited", "unknown") if counts[status]]
    return f"Capture is possible here{': ' + ', '.join(worse) if worse else ', with all features'}.", 0


def report(features: Iterable[Feature], *, colour: bool) -> tuple[str, int]:
    """The whole text, and the exit code."""
    results = [examine(feature) for feature in features]
    last, code = conclusion(results)
    return "\n".join([*rows(results, colour=colour), "", last]), code


def features_table() -> str:
    """All features but the attempt itself, as a table in Markdown."""
    rows = (
        f"| {feature.name} | {feature.purpose} | {feature.lost or 'no capture'} "
        f"| {feature.remedy or 'what it says'} |\n"
        for feature in FEATURES
        if feature.purpose
    )
    return "| feature | needed to | without it | what to do |\n|---|---|---|---|\n" + "".join(rows)


def main(asked: str = AUTO, *, with_events: bool = False) -> int:
    """`dnstrail check`.

    Args:
        asked: `--kubernetes`, as for `run`.
        with_events: `--events`, likewise.

    Returns:
        0 when capture is possible here, if with limits; 1 when it is not.
    """
    of_cluster = (kubernetes(asked), events(asked)) if with_events else (kubernetes(asked),)
    text, code = report((*FEATURES, *of_cluster), colour=wants_colour(os.environ, terminal=sys.stdout.isatty()))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        abandon_stdout()
    return code


if __name__ == "__main__":
    print(features_table(), end="")
