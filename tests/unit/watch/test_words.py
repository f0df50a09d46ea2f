"""Filters as they are typed."""

import pytest

from agent.export.filters import Filter
from agent.watch.words import WordsError, in_words, parse


def test_a_bare_word_is_a_part_of_names():
    assert parse("redis") == Filter(names=("*redis*",))


def test_all_keys_have_their_field_and_several_words_of_one_are_alternatives():
    text = "name:*.local type:aaaa status:failed rcode:SERVFAIL cause:PolicyDrop ns:shop n:till pod:cart-* slow:1.5s"
    assert parse(text) == Filter(
        ("*.local",), ("AAAA",), ("Failed",), ("SERVFAIL",), ("PolicyDrop",), ("shop", "till"), ("cart-*",), 1.5
    )


@pytest.mark.parametrize("text", ["", "   "])
def test_no_word_is_no_filter(text: str):
    assert parse(text) == Filter()


@pytest.mark.parametrize(
    "text", ["name:", "colour:red", "slow:soon", "slow:-1", "slow:nan", "type:NOSUCH", "status:maybe", "x" * 2000]
)
def test_what_means_nothing_is_refused_in_words(text: str):
    with pytest.raises(WordsError, match=r"\w+"):
        parse(text)


@pytest.mark.parametrize("text", ["name:*x* slow:250ms", "cause:A cause:B", "namespace:shop pod:a"])
def test_words_of_a_filter_mean_that_filter(text: str):
    assert parse(in_words(parse(text))) == parse(text)
