"""agent.kernel.kept, agent.kernel.program: a compiled program is the same after it was kept, and only ours is taken."""

from pathlib import Path

import pytest

from agent.kernel import kept, program
from agent.kernel.program import Image, MapSpec, ProgramSpec, Reference

MAP = MapSpec("seen", 9, 8, 8, 65536, 0)
IMAGE = Image([MAP], {"kfree_skb": ProgramSpec(bytes(range(64)), [Reference(3, "seen")])})
KEY = kept.key_of("source", "-DX=1")
LOAD_MAP = program.INSTRUCTION.pack(program.LOAD_64, program.PSEUDO_MAP_FD << 4 | 1, 0, 7)
HIGH_HALF = program.INSTRUCTION.pack(0, 0, 0, 0)
LOAD_NUMBER = program.INSTRUCTION.pack(program.LOAD_64, 2, 0, 7)
EXIT = program.INSTRUCTION.pack(0x95, 0, 0, 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.VARIABLE, f"{tmp_path / 'programs'}:/another")
    return tmp_path / "programs"


def test_what_was_kept_is_read_back(place: Path):
    assert kept.read(KEY) is None
    kept.write(KEY, IMAGE)
    assert kept.read(KEY) == IMAGE
    assert [path.stat().st_mode & 0o777 for path in (place, *place.iterdir())] == [0o700, 0o600]


def test_another_source_or_flag_is_another_program(place: Path):  # noqa: ARG001  the directory
    kept.write(KEY, IMAGE)
    assert kept.read(kept.key_of("source", "-DX=2")) is None
    assert kept.key_of("a", "bc") != kept.key_of("ab", "c")


def test_without_a_directory_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(kept.VARIABLE)
    kept.write(KEY, IMAGE)
    assert kept.read(KEY) is None


@pytest.mark.parametrize("which", ["directory", "file"])
def test_what_others_can_write_is_not_taken(place: Path, which: str):
    kept.write(KEY, IMAGE)
    target = place if which == "directory" else next(place.iterdir())
    target.chmod(target.stat().st_mode | 0o020)
    assert kept.read(KEY) is None


def test_a_symbolic_link_is_not_followed(place: Path, tmp_path: Path):
    kept.write(KEY, IMAGE)
    next(place.iterdir()).rename(tmp_path / "elsewhere")
    (place / f"{KEY}.bpf").symlink_to(tmp_path / "elsewhere")
    assert kept.read(KEY) is None


@pytest.mark.parametrize("data", [b"", b"\x81", b"\xff" * 100, b"{}"])
def test_a_file_that_is_no_program_is_as_good_as_none(place: Path, data: bytes):
    kept.write(KEY, IMAGE)
    next(place.iterdir()).write_bytes(data)
    assert kept.read(KEY) is None


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "file/below"))
    kept.write(KEY, IMAGE)
    assert kept.read(KEY) is None


def test_a_file_that_was_cut_or_changed_is_not_taken(place: Path):
    kept.write(KEY, IMAGE)
    path = next(place.iterdir())
    whole = path.read_bytes()
    for spoilt in (whole[:-1], whole[:-1] + b"x", b"x" + whole[1:]):
        path.write_bytes(spoilt)
        assert kept.read(KEY) is None


def test_what_the_kernel_does_not_take_is_thrown_away(place: Path):
    kept.write(KEY, IMAGE)
    kept.discard(KEY)
    assert not list(place.iterdir())


def test_what_a_killed_loader_left_is_removed(place: Path):
    kept.write(KEY, IMAGE)
    (place / f"{kept.UNFINISHED}abc").write_bytes(b"half")
    kept.write(KEY, IMAGE)
    assert [path.name for path in place.iterdir()] == [f"{KEY}.bpf"]


def test_few_programs_are_kept_at_a_time(place: Path):
    for number in range(kept.KEPT + 3):
        kept.write(kept.key_of(number), IMAGE)
    assert len(list(place.iterdir())) == kept.KEPT
    assert kept.read(kept.key_of(kept.KEPT + 2)) == IMAGE


def test_instructions_that_name_a_map_are_known_and_numbers_like_them_are_not():
    spec = program._program(LOAD_NUMBER + HIGH_HALF + LOAD_MAP + HIGH_HALF + EXIT, {7: MAP})
    assert spec.references == [Reference(2, "seen")]


def test_a_map_that_nobody_knows_is_an_error():
    with pytest.raises(KeyError):
        program._program(LOAD_MAP + HIGH_HALF + EXIT, {})


def test_calls_of_the_kernels_own_functions_are_made_from_the_numbers_that_stand_for_them():
    helper, stands_in = (
        program.INSTRUCTION.pack(program.CALL, 0, 0, 113),
        program.INSTRUCTION.pack(program.CALL, 0, 0, 9001),
    )
    kfunc = program.INSTRUCTION.pack(program.CALL, program.PSEUDO_KFUNC_CALL << 4, 0, 65504)
    assert program.with_kfuncs(helper + stands_in + EXIT, {9001: 65504}) == helper + kfunc + EXIT


def test_what_only_looks_like_such_a_call_stays():
    number = program.INSTRUCTION.pack(program.LOAD_64, 1, 0, 9001) + program.INSTRUCTION.pack(0, 0, 0, 9001)
    other = program.INSTRUCTION.pack(program.CALL, 1 << 4, 0, 9001)
    assert program.with_kfuncs(number + other, {9001: 65504}) == number + other
