"""agent.capture.layout: C and Python read the same record."""

import struct
from pathlib import Path

import pytest

import agent
from agent.capture.layout import RECORD, c_assertions, c_header, fields
from agent.hop.lookup import BODY_BYTES, CACHE_LINE_BYTES, HEAD_BYTES, LOOKUP_HEAD, OFFSETS, RECORD_BYTES, LookupHead
from agent.hop.record import DETAIL, HEAD, Detail, Head

ROOT = Path(agent.__file__).resolve().parent.parent
SIZES = {"__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8, "char": 1}


def test_the_header_in_the_tree_is_the_one_that_is_generated():
    assert (ROOT / "bpf" / "record.h").read_text() == c_header()


def test_both_parts_are_whole_words_so_that_records_follow_each_other_without_gaps():
    assert HEAD.size % 8 == 0
    assert DETAIL.size % 8 == 0
    assert HEAD.size + DETAIL.size == RECORD_BYTES


@pytest.mark.parametrize(("name", "ctype", "count", "offset"), list(fields(*RECORD)))
def test_every_field_lies_where_a_compiler_puts_it_without_padding(name, ctype, count, offset):
    assert offset % SIZES[ctype] == 0, name
    assert offset + SIZES[ctype] * count <= RECORD_BYTES


def test_fields_follow_each_other_without_gaps():
    end = 0
    for name, ctype, count, offset in fields(*RECORD):
        assert offset == end, name
        end += SIZES[ctype] * count
    assert end == RECORD_BYTES


def test_packing_and_unpacking_have_as_many_fields_as_the_records():
    assert len(HEAD.unpack(bytes(HEAD.size))) == len(Head._fields)
    assert len(DETAIL.unpack(bytes(DETAIL.size))) == len(Detail._fields)


def test_the_compiler_is_asked_about_every_field_and_the_size():
    text = c_assertions()
    assert all(f"struct record, {name}) == {offset}" in text for name, _, _, offset in fields(*RECORD))
    assert f"sizeof(struct record) == {RECORD_BYTES}" in text


@pytest.mark.parametrize(("name", "ctype", "count", "offset"), list(fields(LookupHead)))
def test_a_lookups_fields_lie_where_both_sides_look_for_them(name, ctype, count, offset):
    assert offset == OFFSETS[name]
    assert offset % SIZES[ctype] == 0
    assert offset + SIZES[ctype] * count <= LOOKUP_HEAD.size
    assert f"struct lookup, {name}) == {offset}" in c_assertions()


def test_heads_and_bodies_of_lookups_take_whole_lines_of_a_cache():
    assert LOOKUP_HEAD.size <= HEAD_BYTES
    assert HEAD_BYTES % CACHE_LINE_BYTES == BODY_BYTES % CACHE_LINE_BYTES == 0


def test_byte_order_is_the_machines():
    assert HEAD.format[0] == DETAIL.format[0] == "="
    assert struct.calcsize(HEAD.format) == HEAD.size
