"""On a kernel without BTF its headers tell the same, and without these too it is said what to install.

BTF is hidden in a mount namespace of the test's own. The headers are there in the virtual machine (`make test-vm`), and
on every machine that has the package of its kernel's headers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.btf import KERNEL_BTF, Btf, BtfError, load_kernel
from agent.kernel.compiler import KERNEL_SOURCE, source_directory
from agent.kernel.headers import MODULES, headers_directory, load_headers
from agent.kernel.offsets import TRACEPOINTS, conntrack_layout, drop_reasons, kernel_flags
from agent.kernel.types import kernel_types
from agent.lab import Lab, drop_queries
from tests.kernel.commands import CHECK, RUN, found, refused, start
from tests.kernel.conftest import LINE_SECONDS, Watch

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
RELEASE = os.uname().release
HIDE_BTF = f"[ ! -d {KERNEL_BTF} ] || mount -t tmpfs none {KERNEL_BTF}"
HIDE_HEADERS = f"[ ! -d {MODULES} ] || mount -t tmpfs none {MODULES}"
# Another release is what uname(2) then says; the headers stay those of the real one.
OTHER_RELEASE = f"""
build=$(readlink -f {MODULES}/{RELEASE}/build) source=$(readlink -f {MODULES}/{RELEASE}/source)
{HIDE_BTF} && {HIDE_HEADERS} && exec setarch --uname-2.6 sh -c '
    mkdir {MODULES}/$(uname -r) && ln -s "$0" {MODULES}/$(uname -r)/build && ln -s "$1" {MODULES}/$(uname -r)/source &&
    shift && exec "$@"' "$build" "$source" "$@"
"""
NO_BTF = f"{KERNEL_BTF}/vmlinux: No such file or directory: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y"
NO_HEADERS = f"its headers be installed: {MODULES}/{RELEASE}/build is missing (Debian: install linux-headers-{RELEASE};"
AS_GRANTED = ["setpriv", "--bounding-set=-all,+bpf,+perfmon"]
# In a child, as in production: LLVM is not for this process.
DESCRIBE = """
import sys
from agent.kernel.headers import describe
sys.stdout.buffer.write(describe(sys.argv[1], []))
"""
SMALL = """
enum reason { NONE, NO_SOCKET = 3 };
typedef void (*btf_trace_drop)(void *data, int packet, enum reason reason);
struct inner { char first; long second; };
struct outer { struct inner *inner; };
int struct_outer(const volatile struct outer *type) { return 0; }
int struct_inner(const volatile struct inner *type) { return 0; }
int struct_elsewhere(const volatile struct elsewhere *type) { return 0; }
int tracepoint_drop(btf_trace_drop type) { return 0; }
"""


def hidden(script: str) -> list[str]:
    """What makes a command run where this has been hidden."""
    return ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def headers() -> Btf:
    try:
        headers_directory()
    except BtfError as missing:
        pytest.skip(f"this machine has no headers of its kernel: {missing}")
    return load_headers()


@pytest.fixture(scope="module")
def btf() -> Btf:
    if not (KERNEL_BTF / "vmlinux").exists():
        pytest.skip("this kernel has no BTF to compare with")
    return load_kernel()


def untimed(value: Any) -> Any:  # noqa: ANN401  any part of a line
    """A session line without what two observers cannot have in common: when they saw it."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if "time" not in key.lower()}
    if isinstance(value, list):
        return [untimed(inner) for inner in value]
    return None if isinstance(value, float) else value


def test_headers_and_btf_tell_the_same_offsets_drop_reasons_and_tracepoints(headers: Btf, btf: Btf):
    assert kernel_flags(headers) == kernel_flags(btf)
    assert drop_reasons(headers) == drop_reasons(btf)
    assert {name: headers.tracepoint_args(name) for name in TRACEPOINTS} == {
        name: btf.tracepoint_args(name) for name in TRACEPOINTS
    }


def test_headers_tell_the_layout_of_a_connection_that_the_modules_btf_tells(headers: Btf, btf: Btf):
    if btf.has_struct("nf_conn"):
        pytest.skip("connection tracking is built into this kernel")
    if not (KERNEL_BTF / "nf_conntrack").exists():
        pytest.skip("this kernel's modules have no BTF")
    assert conntrack_layout(headers) == conntrack_layout(load_kernel("nf_conntrack"))


@pytest.mark.usefixtures("headers", "btf")
def test_without_btf_the_same_lookups_give_the_same_lines(watch: Callable[..., Watch]):
    with Lab() as lab:
        watchers = watch("--timeout", "1.5"), watch("--timeout", "1.5", within=hidden(HIDE_BTF))
        for options in (["A"], ["AAAA"], ["A", lab.servers[0].address, "+tcp"]):
            assert "status: NOERROR" in lab.clients[0].dig(NAME, *options).stdout
        with drop_queries(lab):
            lab.clients[0].dig(NAME)
        with_btf, without = (one.wait_for(lab, 4, 2 * LINE_SECONDS) for one in watchers)
        maps = Path(f"/proc/{watchers[1].process.pid}/maps").read_text()
        for one in watchers:
            one.stop()
    assert [line["Status"] for line in with_btf] == ["Succeeded", "Succeeded", "Succeeded", "Failed"]
    assert with_btf[0]["Server"]["Backend"] is not None  # so the layout of a connection's entry was used
    assert with_btf[3]["Cause"]["Code"] == "PolicyDrop"
    assert untimed(without) == untimed(with_btf)
    assert "libbcc" not in maps


@pytest.mark.usefixtures("headers")
def test_without_btf_check_names_the_headers_and_finds_all_that_it_finds_with_btf():
    rows = found(start([*hidden(HIDE_BTF), *CHECK]), 0)
    assert rows["types of the kernel"].startswith("ok ")
    assert f"headers in {MODULES}/{RELEASE}/build" in rows["types of the kernel"]
    for name in ("tracepoints", "arguments of kfree_skb", "drop reasons", "types of nf_conntrack", "load and attach"):
        assert rows[name].startswith("ok "), rows[name]


@pytest.mark.usefixtures("headers")
def test_headers_of_another_kernel_are_refused():
    message = refused(start(["unshare", "--mount", "sh", "-c", OTHER_RELEASE, "sh", *RUN]))
    assert f"these are the headers of kernel {RELEASE}, which is not the one that runs" in message.replace('" "', "")


def test_check_with_neither_btf_nor_headers_says_what_to_install():
    rows = found(start([*hidden(f"{HIDE_BTF} && {HIDE_HEADERS}"), *CHECK]), 1)
    assert rows["types of the kernel"].startswith("missing")
    assert NO_BTF in rows["types of the kernel"]
    assert NO_HEADERS in rows["types of the kernel"]
    assert rows["drop reasons"].startswith("unknown")
    assert rows["load and attach"].endswith("see types of the kernel")


def test_run_with_neither_btf_nor_headers_says_what_to_install():
    message = refused(start([*hidden(f"{HIDE_BTF} && {HIDE_HEADERS}"), *RUN]))
    assert NO_BTF in message
    assert NO_HEADERS in message


@pytest.mark.usefixtures("btf")
def test_with_btf_the_headers_are_not_asked():
    assert kernel_types().source == "BTF"


def test_what_clang_says_of_a_type_comes_back_as_btf_with_two_capabilities(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KERNEL_SOURCE, str(source_directory() / "include"))
    command = [*AS_GRANTED, sys.executable, "-c", DESCRIBE, SMALL]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    described = Btf.from_bytes(done.stdout)
    assert described.offset("inner", "second") == 8
    assert described.tracepoint_args("drop") == 2
    assert described.enum("reason") == {"NONE": 0, "NO_SOCKET": 3}
    with pytest.raises(BtfError, match="elsewhere is only declared here"):
        described.offset("elsewhere", "x")
