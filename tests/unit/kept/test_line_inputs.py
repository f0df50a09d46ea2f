"""agent.kept.inputs: files of lines, compressed ones, and standard input."""

import gzip
import io
import sys
from pathlib import Path

import pytest

from agent.capturefile.inputs import InputError
from agent.kept.inputs import ZSTANDARD, LineInputs

TEXT = b"one\ntwo\nthree"
LINES = [b"one\n", b"two\n", b"three"]


def read(*paths):
    with LineInputs(map(str, paths)) as inputs:
        return [(list(one.lines()), one.error) for one in inputs.all]


@pytest.fixture
def file(tmp_path):
    def make(content: bytes, name: str = "kept") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return make


def test_files_are_read_in_the_order_in_which_they_are_named(file):
    assert read(file(b"b\n", "b"), file(b"a\n", "a")) == [([b"b\n"], ""), ([b"a\n"], "")]


@pytest.mark.parametrize("name", ["kept.gz", "kept.jsonl"])
def test_a_compressed_file_is_known_by_its_bytes(file, name):
    assert read(file(gzip.compress(TEXT), name)) == [(LINES, "")]


def test_compressed_files_in_one_are_read_whole(file):
    assert read(file(gzip.compress(b"one\n") + gzip.compress(b"two\n"))) == [([b"one\n", b"two\n"], "")]


def test_an_empty_file_has_no_lines(file):
    assert read(file(b"")) == [([], "")]


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_is_a_file_like_any_other(monkeypatch, packed):
    content = io.BufferedReader(io.BytesIO(gzip.compress(TEXT) if packed else TEXT))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert read("-") == [(LINES, "")]


def test_of_a_compressed_file_that_is_cut_the_lines_before_the_cut_are_read(file):
    content = b"".join(b"%d\n" % number**9 for number in range(100_000))
    ((lines, error),) = read(file(gzip.compress(content)[: len(content) // 5]))
    assert lines == content.splitlines(keepends=True)[: len(lines)]
    assert len(lines) > 1000
    assert error == "the compressed file is cut off or damaged"


@pytest.mark.parametrize("damage", [b"\x1f\x8b", b"\x1f\x8b\x08\x00" + bytes(40), gzip.compress(TEXT) + b"x"])
def test_a_damaged_compressed_file_is_said_to_be_so(file, damage):
    ((_, error),) = read(file(damage))
    assert error == "the compressed file is cut off or damaged"


def test_what_cannot_be_unpacked_here_is_said_with_the_way_out(file):
    ((lines, error),) = read(file(ZSTANDARD + bytes(20)))
    assert (lines, "zstdcat" in error) == ([], True)


def test_a_file_that_opens_and_cannot_be_read_is_said_to_be_so():
    assert read("/proc/self/mem") == [([], "cannot be read: Input/output error")]


def test_a_closed_standard_input_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input: it is closed"):
        read("-")


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file or directory"), (".", "Is a directory")], ids=["missing", "folder"]
)
def test_a_file_that_cannot_be_opened_is_named(tmp_path, name, reason):
    with pytest.raises(InputError, match=f"cannot open .*{reason}"):
        LineInputs([str(tmp_path / name)])
