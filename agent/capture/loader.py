"""Load the BPF program in a child process that hands over its file descriptors and exits.

The compiler's memory (agent.kernel.compiler) goes with the child, which is `python -m agent.capture.loader FD`.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from agent.capture import cgroup, privileges
from agent.capture.counters import COUNTERS_ASSERTION
from agent.capture.endpoints import ENDPOINTS_ASSERTION
from agent.capture.layout import c_assertions
from agent.kernel.btf import BtfError
from agent.kernel.compiler import KERNEL_SOURCE, bcc, source_directory
from agent.kernel.errors import CaptureError
from agent.kernel.offsets import TRACEPOINTS, drop_reasons, kernel_flags
from agent.kernel.syscall import create_anchor
from agent.kernel.types import kernel_types

MAPS = ("ring", "counters", "endpoints", "sieves")
CHILD_TIMEOUT_SECONDS = 120
HAS_COUNTERS = "HAS_CONNTRACK_STAT"
COUNTERS_LOSS = (
    "the conntrack counters of a packet's CPU cannot be read: a full table, a lost race and a rule are told apart by "
    "the namespace's counters alone"
)
PROBE, PROBED = "datagram_read", "skb_consume_udp"
PROBE_LOSS = "no kprobes: whether a silent server has read a query is not known"
CGROUP_LOSS = "DNS over TCP and datagrams in paged buffers are not seen"
DIAGNOSTICS_CHARACTERS = 2000


class Loaded(NamedTuple):
    """What the child left: open file descriptors, and what it learned of the kernel."""

    fds: dict[str, int]
    """Maps by name, `prog:NAME` and `link:NAME` for each tracepoint. Closing a link detaches its program."""
    ring_bytes: int
    cpus: int
    drop_reasons: dict[int, str]
    limits: list[str]
    """What this kernel or process keeps it from seeing, a sentence each."""


def load(ports: list[int], ring_bytes: int) -> Loaded:
    """Compile, load and attach the program for these ports. It records nothing until it is armed.

    Args:
        ports: UDP and TCP ports that count as DNS.
        ring_bytes: size of the ring, a power of two and at least a page.

    Raises:
        CaptureError: with the reason and the remedy.
    """
    privileges.require()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = json.dumps({"ports": ports, "ring_bytes": ring_bytes})
    command = [sys.executable, "-P", "-m", "agent.capture.loader", str(theirs.fileno()), order]
    # LLVM and the verifier say what is wrong on file descriptor 2, and LLVM then aborts: no exception carries it.
    with ours, tempfile.TemporaryFile() as words:
        with theirs:
            child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=words)
        with child:
            answer, fds = _receive(ours, child)
        words.seek(0)
        return _loaded(answer, fds, words.read().decode("utf-8", "replace").strip()[-DIAGNOSTICS_CHARACTERS:])


def _receive(channel: socket.socket, child: subprocess.Popen[bytes]) -> tuple[dict[str, Any], list[int]]:
    channel.settimeout(CHILD_TIMEOUT_SECONDS)
    try:
        answer, fds, _, _ = socket.recv_fds(channel, 1 << 16, 32)
    except TimeoutError:
        child.kill()
        return {"error": f"it took over {CHILD_TIMEOUT_SECONDS} s"}, []
    return json.loads(answer or b'{"error": "the loader died"}'), fds


def _loaded(answer: dict[str, Any], fds: list[int], diagnostics: str) -> Loaded:
    if "refused" in answer:
        raise CaptureError(answer["refused"])
    if "error" in answer:
        raise CaptureError(f"the BPF program could not be loaded: {answer['error']}\n{diagnostics}".strip())
    return Loaded(
        fds=dict(zip(answer["fds"], fds, strict=True)),
        ring_bytes=answer["ring_bytes"],
        cpus=answer["cpus"],
        drop_reasons={int(value): name for value, name in answer["drop_reasons"].items()},
        limits=answer["limits"],
    )


def possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """One more than the highest CPU number this machine can ever have."""
    return int(path.read_text().strip().replace(",", "-").split("-")[-1]) + 1


def compiler_flags(ports: list[int], ring_bytes: int, cpus: int, offsets: dict[str, int]) -> list[str]:
    """Everything the C source leaves open, as -D flags."""
    match = "||".join(f"(p)=={port}" for port in ports)
    values = offsets | {"RING_PAGES": ring_bytes // mmap.PAGESIZE, "PAGE_BYTES": mmap.PAGESIZE, "CPUS": cpus}
    return [
        f"-I{source_directory()}",
        f"-DIS_DNS_PORT(p)=({match})",
        # bcc's own helpers provoke these; errors in our source are errors all the same
        "-Wno-macro-redefined",
        "-Wno-duplicate-decl-specifier",
        *(f"-D{name}={value}" for name, value in values.items()),
    ]


def _attach(order: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """In the child: do it all; returns descriptors by name and what to tell the parent."""
    kernel = kernel_types().btf
    os.environ[KERNEL_SOURCE] = str(source_directory() / "include")
    cpus = possible_cpus()
    program, limits = _compile(bcc().BPF, order, cpus, kernel_flags(kernel))
    fds: dict[str, int] = {name: program[name].map_fd for name in MAPS}
    # BPF() has attached them by their names, raw_tracepoint__*
    for name in TRACEPOINTS:
        fds[f"prog:{name}"] = program.funcs[f"raw_tracepoint__{name}".encode()].fd
        fds[f"link:{name}"] = program.raw_tracepoint_fds[name.encode()]
    links, more_limits = _attach_cgroup(program)
    probes, probe_limits = _attach_probe(program)
    learned = {
        "ring_bytes": order["ring_bytes"],
        "cpus": cpus,
        "drop_reasons": drop_reasons(kernel),
        "limits": limits + more_limits + probe_limits,
    }
    return fds | links | probes, learned


def _compile(bpf: Any, order: dict[str, Any], cpus: int, offsets: dict[str, int]) -> tuple[Any, list[str]]:  # noqa: ANN401
    """Compile and load; without the conntrack counters where the kernel has none or does not let them be read."""
    assertions = c_assertions() + COUNTERS_ASSERTION + ENDPOINTS_ASSERTION
    source = (source_directory() / "dnstrail.bpf.c").read_text() + assertions
    ports, ring_bytes = order["ports"], order["ring_bytes"]
    if HAS_COUNTERS in offsets:
        try:
            flags = compiler_flags(ports, ring_bytes, cpus, offsets | {"ANCHOR_FD": create_anchor()})
            return bpf(text=source, cflags=flags), []
        except Exception as error:  # noqa: BLE001  BCC raises bare Exception
            limit = f"{COUNTERS_LOSS} ({str(error).splitlines()[0]})"
    else:
        limit = COUNTERS_LOSS
    plain = {name: value for name, value in offsets.items() if name != HAS_COUNTERS}
    return bpf(text=source, cflags=compiler_flags(ports, ring_bytes, cpus, plain)), [limit]


def _attach_cgroup(program: Any) -> tuple[dict[str, int], list[str]]:  # noqa: ANN401  BCC has no types
    """Attach the socket programs; without them only TCP and paged datagrams are missed."""
    root = cgroup.cgroup2_root()
    if root is None:
        return {}, [f"no cgroup v2 tree is mounted: {CGROUP_LOSS}"]
    fds: dict[str, int] = {}
    try:
        for name, attach_type in cgroup.ATTACH_TYPES.items():
            fds[f"prog:{name}"] = program.load_func(name, program.CGROUP_SKB).fd
            fds[f"link:{name}"] = cgroup.link(fds[f"prog:{name}"], root, attach_type)
    except Exception as error:  # noqa: BLE001  BCC raises bare Exception
        return {}, [f"cannot attach to {root} ({str(error).splitlines()[0]}; needs CAP_NET_ADMIN): {CGROUP_LOSS}"]
    return fds, []


def _attach_probe(program: Any) -> tuple[dict[str, int], list[str]]:  # noqa: ANN401  BCC has no types
    """Attach the kprobe; many kernels are built without, or refuse it, and everything else works all the same."""
    try:
        prog = program.load_func(PROBE, program.KPROBE).fd
        link = bcc_attach_kprobe(prog)
    except Exception as error:  # noqa: BLE001  BCC raises bare Exception
        return {}, [f"{PROBE_LOSS} ({str(error).strip().splitlines()[0]})"]
    return {f"prog:{PROBE}": prog, f"link:{PROBE}": link, "reads": program["reads"].map_fd}, []


def bcc_attach_kprobe(prog_fd: int) -> int:
    """Attach to the function by which applications take datagrams; the perf event's descriptor.

    Raises:
        OSError: this kernel has no kprobes, or not for us.
    """
    entry, event, function = 0, b"dnstrail_" + PROBE.encode(), PROBED.encode()
    fd = bcc().lib.bpf_attach_kprobe(prog_fd, entry, event, function, 0, 0)
    if fd < 0:
        raise OSError(f"{PROBED} cannot be probed")
    return int(fd)


def _child(channel: int, order: dict[str, Any]) -> None:
    with socket.socket(fileno=channel) as parent:
        try:
            fds, learned = _attach(order)
            socket.send_fds(parent, [json.dumps(learned | {"fds": list(fds)}).encode()], list(fds.values()))
        except (CaptureError, BtfError) as error:
            parent.send(json.dumps({"refused": str(error)}).encode())
        except Exception as error:  # noqa: BLE001  BCC raises bare Exception
            parent.send(json.dumps({"error": str(error)}).encode())
    # BCC's atexit handler would detach what was just handed over.
    os._exit(0)


if __name__ == "__main__":
    _child(int(sys.argv[1]), json.loads(sys.argv[2]))
