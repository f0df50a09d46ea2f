"""agent.kernel.headers: where the headers are looked for, what is asked of the compiler, what it is quoted with."""

from pathlib import Path

import pytest

from agent.kernel.btf import BtfError
from agent.kernel.headers import COMPLAINT_CHARACTERS, c_source, complaint, headers_directory
from agent.kernel.offsets import (
    CONNTRACK_OFFSETS,
    CONNTRACK_STAT_OFFSETS,
    COUNTER_PLACES,
    OFFSETS,
    TRACEPOINTS,
)


def install(modules: Path, part: str) -> None:
    place = modules / "6.1.0-9-amd64" / part / "include/linux"
    place.mkdir(parents=True)
    (place / "kconfig.h").touch()


@pytest.mark.parametrize("part", ["build", "source"])
def test_headers_are_found_where_packages_put_them_in_one_part_or_two(tmp_path: Path, part: str):
    install(tmp_path, part)
    assert headers_directory(tmp_path, "6.1.0-9-amd64") == tmp_path / "6.1.0-9-amd64/build"


def test_headers_of_another_kernel_do_not_count_and_the_package_to_install_is_named(tmp_path: Path):
    install(tmp_path, "build")
    with pytest.raises(BtfError, match=r"-10-amd64/build is missing \(Debian: install linux-headers-6.1.0-10-amd64;"):
        headers_directory(tmp_path, "6.1.0-10-amd64")


def test_every_structure_and_tracepoint_that_is_asked_for_is_mentioned_once():
    source = c_source()
    tables = (OFFSETS, CONNTRACK_OFFSETS, CONNTRACK_STAT_OFFSETS, COUNTER_PLACES)
    for name in {struct for table in tables for struct, _ in table.values()}:
        assert source.count(f"struct {name} *type)") == 1
    for name in TRACEPOINTS:
        assert source.count(f"(btf_trace_{name} type)") == 1


@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        ("In file included from a.h:\nb.h:3:1: error: unknown type 'x'\nint x;\n2: error: y\n", "b.h:3:1: error: unkn"),
        ("/virtual/main.c:2:10: fatal error: 'x.h' file not found\n", "/virtual/main.c:2:10: fatal error: 'x.h' file"),
        ("warning\nno BCC here\n\n", "no BCC here"),
        ("", "the compiler died without a word"),
    ],
)
def test_the_first_error_is_quoted_or_the_last_word(words: str, quoted: str):
    assert complaint(words).startswith(quoted)


def test_a_long_error_is_cut():
    assert len(complaint(f"error: {'x' * 10_000}")) == COMPLAINT_CHARACTERS
