"""agent.kernel.program against the kernel's own verifier."""

import os
import subprocess
import sys

import pytest

from agent.kernel.casts import cast_id
from agent.kernel.program import INSTRUCTION, RAW_TRACEPOINT, MapSpec, ProgramSpec, create, load
from agent.kernel.types import kernel_types

pytestmark = pytest.mark.kernel

LOAD_EACH_WAY = """
import sys
from agent.capture import loader
from agent.kernel import casts
from agent.kernel.program import CALL, INSTRUCTION, PSEUDO_KFUNC_CALL
from agent.kernel.types import kernel_types

if sys.argv[1] == "probed":
    loader.cast_id = lambda _kernel: None
program, _ = loader._load({"ports": [53], "ring_bytes": 1 << 20, "joined": True}, 1, kernel_types().btf)
for name in loader.cgroup.ATTACH_TYPES:
    program.load(name, loader.CGROUP_SKB)
code = program.image.programs["kfree_skb"].code
print(any(one[0] == CALL and one[1] >> 4 == PSEUDO_KFUNC_CALL for one in INSTRUCTION.iter_unpack(code)))
"""
EXIT = INSTRUCTION.pack(0x95, 0, 0, 0)
RETURN_0 = INSTRUCTION.pack(0xB7, 0, 0, 0) + EXIT
ARRAY = 2


def test_a_program_that_the_verifier_takes_is_loaded():
    os.close(load("fine", ProgramSpec(RETURN_0, []), RAW_TRACEPOINT, {}))


def test_what_the_verifier_refuses_is_named_and_its_words_stand_on_lines_of_their_own():
    with pytest.raises(PermissionError) as raised:
        load("refused", ProgramSpec(EXIT, []), RAW_TRACEPOINT, {})
    first, *words = str(raised.value.strerror).splitlines()
    assert first == "Permission denied (refused)"
    assert "R0 !read_ok" in "\n".join(words)


def test_a_map_that_the_kernel_refuses_is_named():
    with pytest.raises(OSError, match="Invalid argument \\(map nothing\\)"):
        create(MapSpec("nothing", ARRAY, 4, 8, 0, 0))


@pytest.mark.parametrize("way", ["cast", "probed"])
def test_the_program_is_taken_with_plain_loads_and_without(way: str):
    done = subprocess.run([sys.executable, "-c", LOAD_EACH_WAY, way], capture_output=True, text=True, check=False)
    expected = way == "cast" and cast_id(kernel_types().btf) is not None
    assert done.stdout.strip() == str(expected), done.stderr[-2000:]
