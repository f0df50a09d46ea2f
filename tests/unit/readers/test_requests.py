"""What readers ask for, and what is no request."""

import json

import pytest

from agent.export.filters import Filter
from agent.readers.requests import MAX_WORDS, BadRequestError, Wanted, read_request, write_request

EVERYTHING = Wanted(
    Filter(("*.local",), ("AAAA",), ("Failed",), ("SERVFAIL",), ("PolicyDrop",), ("shop",), ("cart-*",), 0.25),
    problems=True,
    messages=True,
    incidents=True,
    healthy_a_second=7,
)


@pytest.mark.parametrize("wanted", [Wanted(), EVERYTHING])
def test_a_request_comes_as_it_was_sent(wanted: Wanted):
    assert read_request(write_request(wanted).rstrip(b"\n")) == wanted


def test_nothing_asked_for_is_everything():
    assert read_request(b"{}") == Wanted()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET / HTTP/1.1",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"Names":"x"}',
        b'{"Names":[1]}',
        b'{"SlowSeconds":-1}',
        b'{"HealthyASecond":0}',
        b"[" * 10_000,
        b'{"Names":["' + b"x" * 2000 + b'"]}',
        json.dumps({"Names": ["x"] * (MAX_WORDS + 1)}).encode(),
    ],
)
def test_what_is_no_request_is_refused_in_words(text: bytes):
    with pytest.raises(BadRequestError, match=r"\w+"):
        read_request(text)


def test_a_filter_that_is_not_known_is_refused_and_never_left_out():
    with pytest.raises(BadRequestError, match="Colour"):
        read_request(b'{"Colour":["red"]}')


@pytest.mark.parametrize(
    ("fields", "healthy"),
    [
        ({}, True),
        ({"names": ("x",)}, True),
        ({"statuses": ("succeeded",)}, True),
        ({"statuses": ("Failed",)}, False),
        ({"rcodes": ("NXDOMAIN",)}, False),
        ({"rcodes": ("noerror",)}, True),
        ({"causes": ("PolicyDrop",)}, False),
        ({"slow_seconds": 1.0}, True),
    ],
)
def test_healthy_lookups_are_asked_for_where_the_filter_may_let_them_pass(fields, healthy):
    assert Wanted(Filter(**fields)).wants_healthy is healthy
    assert Wanted(Filter(**fields), problems=True).wants_healthy is False
