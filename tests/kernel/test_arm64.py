"""What runs on arm64 nodes, as far as a machine of another kind can show it.

BCC compiles for the architecture that ARCH names (src/cc/frontends/clang/arch_helper.h): types, alignment and
signedness of char are that architecture's, and so are its macros. BPF's own code is the same everywhere, so what was
compiled for arm64 loads here, passes this kernel's verifier, and captures.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from agent.lab import Lab
from tests.kernel.conftest import Watch

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
LOOKUPS = 23
# In a child, as in production: LLVM is not for this process.
COMPILER = """
import os, sys
from agent.kernel.compiler import source_directory
os.environ["BCC_KERNEL_SOURCE"] = str(source_directory() / "include")
from bcc import BPF
BPF(text=sys.argv[1], cflags=["-DPAGE_BYTES=4096"])
"""
NOT_ARM64 = """
#ifndef __aarch64__
#error compiled for something else
#endif
_Static_assert((char)-1 > 0, "char is unsigned");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian");
"""
LOADER_WITH_LARGE_PAGES = """
import json, socket, sys
from agent.capture import loader
class Large:  # what loader asks of mmap; BCC itself goes on asking the system
    PAGESIZE = 65536
loader.mmap = Large
loaded, learned = loader._attach({"ports": [53], "ring_bytes": 16 << 20, "joined": True})
print(json.dumps(sorted(loaded)))
"""


@pytest.fixture
def _arm64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCH", "arm64")
    assert compiles(NOT_ARM64), "this BCC does not compile for arm64"


def compiles(text: str) -> bool:
    return python(COMPILER, text).returncode == 0


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))


def test_the_probe_itself_can_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ARCH", "x86")
    assert not compiles(NOT_ARM64)


@pytest.mark.usefixtures("_arm64")
def test_compiled_for_arm64_it_passes_the_verifier_and_captures_whole_lookups(watch: Callable[..., Watch]):
    with Lab() as lab:
        dnstrail = watch()
        for _ in range(LOOKUPS):
            assert "status: NOERROR" in lab.clients[0].dig(NAME).stdout
        assert lab.clients[0].dig(NAME, "A", lab.servers[0].address, "+tcp").returncode == 0
        lines = dnstrail.wait_for(lab, LOOKUPS + 1)
        dnstrail.stop()
    udp = [line for line in lines if line["Protocol"] == "UDP"]
    assert len(udp) == LOOKUPS
    for line in udp:
        assert (line["Status"], line["PathBitMap"], len(line["Path"])) == ("Succeeded", 51, 8)
        assert line["Client"]["Process"] == "dig"
        assert line["Server"]["Backend"] == f"{lab.servers[0].address}:53"
    assert [line["Status"] for line in lines if line["Protocol"] == "TCP"] == ["Succeeded"]


@pytest.mark.usefixtures("_arm64")
def test_compiled_for_a_kernel_with_pages_of_64_kib_it_loads():
    done = python(LOADER_WITH_LARGE_PAGES)
    assert done.returncode == 0, done.stderr
    assert "link:kfree_skb" in done.stdout
