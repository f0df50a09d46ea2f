"""Load the BPF program in a child process that hands over its file descriptors and exits.

The compiler's memory (agent.kernel.compiler) goes with the child, which is `python -m agent.capture.loader FD`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from agent import __version__
from agent.capture import cgroup, privileges
from agent.capture.counters import COUNTERS_ASSERTION
from agent.capture.endpoints import ENDPOINTS_ASSERTION
from agent.capture.layout import c_assertions
from agent.capture.lookups import LOG_ASSERTION, LOOKUPS, WAKE_AT
from agent.kernel import kept
from agent.kernel.btf import Btf, BtfError
from agent.kernel.casts import CALL_NUMBER, cast_id
from agent.kernel.compiler import KERNEL_SOURCE, bcc, compiler_identity, program_source, source_directory
from agent.kernel.errors import CaptureError
from agent.kernel.offsets import TRACEPOINTS, drop_reasons, kernel_flags
from agent.kernel.program import CGROUP_SKB, KPROBE, RAW_TRACEPOINT, Image, MapSpec, image_of, open_raw_tracepoint
from agent.kernel.program import create as create_map
from agent.kernel.program import load as load_program
from agent.kernel.types import kernel_types

HANDED_OVER = ("ring", "counters", "endpoints", "sieves")
MAPS = (*HANDED_OVER, "scratch", "seen", "fragments", "reads", "passings")
"""All of bpf/dnstrail.bpf.c, and those that the agent uses."""
LOG_HANDED_OVER = ("lookups", "bodies", "logs")
LOG_MAPS = (*LOG_HANDED_OVER, "tag_sets")
"""The same of the log of lookups, which needs atomic operations that return what was there before (Linux 5.12)."""
LOG = {"LOOKUPS": LOOKUPS, "TAG_SETS": LOOKUPS // 2, "WAKE_AT": WAKE_AT}
CHILD_TIMEOUT_SECONDS = 120
HAS_COUNTERS = "HAS_CONNTRACK_STAT"
COUNTERS_LOSS = (
    "the conntrack counters of a packet's CPU cannot be read: a full table, a lost race and a rule are told apart by "
    "the namespace's counters alone"
)
PROBE, PROBED = "datagram_read", "skb_consume_udp"
PROBE_LOSS = "no kprobes: whether a silent server has read a query is not known"
FUNCTIONS = [*TRACEPOINTS, *cgroup.ATTACH_TYPES, PROBE]
"""Of bpf/dnstrail.bpf.c."""
PERCPU_ARRAY = 6
"""enum bpf_map_type."""
ANCHOR_FD = 0x7FFFFFFF
"""Stands in the compiled program for the descriptor of the map below: no descriptor is as large."""
ANCHOR = MapSpec("anchor", PERCPU_ARRAY, 4, 8, 1, 0)
"""A per-CPU array of one value: the program learns from it where each CPU's part of per-CPU memory begins."""
CGROUP_LOSS = "DNS over TCP and datagrams in paged buffers are not seen"
DIAGNOSTICS_CHARACTERS = 2000
Flags = dict[str, int]
"""Values for the compiler, by name."""


class Loaded(NamedTuple):
    """What the child left: open file descriptors, and what it learned of the kernel."""

    fds: dict[str, int]
    """Maps by name, `prog:NAME` and `link:NAME` for each tracepoint. Closing a link detaches its program."""
    ring_bytes: int
    cpus: int
    drop_reasons: dict[int, str]
    limits: list[str]
    """What this kernel or process keeps it from seeing, a sentence each."""


def load(ports: list[int], ring_bytes: int, *, joined: bool) -> Loaded:
    """Compile, load and attach the program for these ports. It records nothing until it is armed.

    Args:
        ports: UDP and TCP ports that count as DNS.
        ring_bytes: size of the ring, a power of two and at least a page.
        joined: let the program join the hops of each lookup, where the kernel can.

    Raises:
        CaptureError: with the reason and the remedy.
    """
    privileges.require()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = json.dumps({"ports": ports, "ring_bytes": ring_bytes, "joined": joined})
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
    cpus = possible_cpus()
    _allow_locked_memory()
    program, limits = _load(order, cpus, kernel)
    links, more_limits = _attach_cgroup(program)
    probes, probe_limits = _attach_probe(program)
    learned = {
        "ring_bytes": order["ring_bytes"],
        "cpus": cpus,
        "drop_reasons": drop_reasons(kernel),
        "limits": limits + more_limits + probe_limits,
    }
    handed_over = (*HANDED_OVER, *(name for name in LOG_HANDED_OVER if name in program.maps))
    fds = {name: program.maps[name] for name in handed_over} | program.tracepoints()
    return fds | links | probes, learned


def _allow_locked_memory() -> None:
    """Before 5.11 maps and programs counted as locked memory; without CAP_SYS_RESOURCE the hard limit stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return


class _Program(NamedTuple):
    """An image with its maps, and its tracepoints' programs, which are loaded and not attached."""

    image: Image
    maps: dict[str, int]
    programs: dict[str, int]

    def load(self, name: str, kind: int) -> int:
        """Load another program of the image."""
        return load_program(name, self.image.programs[name], kind, self.maps)

    def tracepoints(self) -> dict[str, int]:
        """Attach; descriptors of programs and links."""
        fds = {f"prog:{name}": fd for name, fd in self.programs.items()}
        return fds | {f"link:{name}": open_raw_tracepoint(name, fd) for name, fd in self.programs.items()}


def _load(order: dict[str, Any], cpus: int, kernel: Btf) -> tuple[_Program, list[str]]:
    """Load, as much as the kernel takes: it may lack plain loads, or the conntrack counters, or not let them be read.

    Returns:
        The program, and what it cannot tell.
    """
    offsets, cast = kernel_flags(kernel), cast_id(kernel)
    plain = {name: value for name, value in offsets.items() if name != HAS_COUNTERS}
    counters = offsets | {"ANCHOR_FD": ANCHOR_FD} if HAS_COUNTERS in offsets else plain
    refusal: Exception | None = None
    logs = [LOG, {}] if order["joined"] else [{}]
    for flags, kfuncs in _variants(counters, plain, logs, cast):
        values = flags | ({"CAST_CALL": CALL_NUMBER} if kfuncs else {})
        try:
            program = _loaded_by(compiler_flags(order["ports"], order["ring_bytes"], cpus, values), kfuncs)
        except Exception as error:  # noqa: BLE001  BCC raises bare Exception
            refusal = error
            continue
        if HAS_COUNTERS in flags:
            return program, []
        why = f" ({str(refusal).splitlines()[0]})" if HAS_COUNTERS in offsets else ""
        return program, [f"{COUNTERS_LOSS}{why}"]
    assert refusal is not None  # noqa: S101  there is at least one variant
    raise refusal


def _variants(counters: Flags, plain: Flags, logs: list[Flags], cast: int | None) -> list[tuple[Flags, dict[int, int]]]:
    """What to try, best first: values for the compiler, and functions of the kernel by the numbers of their calls."""
    kfuncs = [{CALL_NUMBER: cast}, {}] if cast is not None else [{}]
    flags = [counters, plain] if counters is not plain else [plain]
    return [(values | log, functions) for values in flags for log in logs for functions in kfuncs]


def _loaded_by(flags: list[str], kfuncs: dict[int, int]) -> _Program:
    """The program for these flags: kept from an earlier start, else compiled now; kept once it was loaded."""
    source = program_source() + c_assertions() + COUNTERS_ASSERTION + ENDPOINTS_ASSERTION + LOG_ASSERTION
    key = kept.key_of(__version__, source, *flags, *kfuncs.values(), *_kernel(), *compiler_identity())
    image = kept.read(key)
    if image is not None:
        try:
            return _created(image)
        except (OSError, KeyError):
            kept.discard(key)
    maps = MAPS + LOG_MAPS if any(flag.startswith("-DLOOKUPS=") for flag in flags) else MAPS
    program = _created(_compiled(source, maps, flags, kfuncs))
    kept.write(key, program.image)
    return program


def _kernel() -> tuple[str, str, str]:
    kernel = os.uname()
    return kernel.release, kernel.version, kernel.machine


def _compiled(source: str, names: tuple[str, ...], flags: list[str], kfuncs: dict[int, int]) -> Image:
    os.environ[KERNEL_SOURCE] = str(source_directory() / "include")
    compiled = bcc().BPF(text=source, cflags=flags)
    maps = {name: compiled[name].map_fd for name in names}
    image = image_of(compiled, maps, FUNCTIONS, {ANCHOR_FD: ANCHOR}, kfuncs)
    for fd in maps.values():
        os.close(fd)  # else their memory would be taken twice
    return image


def _created(image: Image) -> _Program:
    """Create the maps and load what tracepoints run; nothing is left of it if that fails."""
    with contextlib.ExitStack() as undo:
        maps: dict[str, int] = {}
        for spec in image.maps:
            maps[spec.name] = create_map(spec)
            undo.callback(os.close, maps[spec.name])
        programs: dict[str, int] = {}
        for name in TRACEPOINTS:
            programs[name] = load_program(name, image.programs[name], RAW_TRACEPOINT, maps)
            undo.callback(os.close, programs[name])
        undo.pop_all()
    return _Program(image, maps, programs)


def _attach_cgroup(program: _Program) -> tuple[dict[str, int], list[str]]:
    """Attach the socket programs; without them only TCP and paged datagrams are missed."""
    root = cgroup.cgroup2_root()
    if root is None:
        return {}, [f"no cgroup v2 tree is mounted: {CGROUP_LOSS}"]
    fds: dict[str, int] = {}
    try:
        for name, attach_type in cgroup.ATTACH_TYPES.items():
            fds[f"prog:{name}"] = program.load(name, CGROUP_SKB)
            fds[f"link:{name}"] = cgroup.link(fds[f"prog:{name}"], root, attach_type)
    except OSError as error:
        return {}, [f"cannot attach to {root} ({str(error).splitlines()[0]}; needs CAP_NET_ADMIN): {CGROUP_LOSS}"]
    return fds, []


def _attach_probe(program: _Program) -> tuple[dict[str, int], list[str]]:
    """Attach the kprobe; many kernels are built without, or refuse it, and everything else works all the same."""
    try:
        prog = program.load(PROBE, KPROBE)
        link = bcc_attach_kprobe(prog)
    except Exception as error:  # noqa: BLE001  BCC raises bare Exception
        return {}, [f"{PROBE_LOSS} ({str(error).strip().splitlines()[0]})"]
    return {f"prog:{PROBE}": prog, f"link:{PROBE}": link, "reads": program.maps["reads"]}, []


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
