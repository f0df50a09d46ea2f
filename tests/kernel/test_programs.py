"""agent.kernel.program against the kernel's own verifier."""

import os

import pytest

from agent.kernel.program import INSTRUCTION, RAW_TRACEPOINT, MapSpec, ProgramSpec, create, load

pytestmark = pytest.mark.kernel

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
