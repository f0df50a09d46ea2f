"""Sessions of pods that the API has not told of yet wait a little, and not too many of them."""

from agent.export.unnamed import MAX_WAITING, WAIT_SECONDS, Unnamed


def test_a_session_waits_so_long_and_no_longer():
    unnamed = Unnamed()
    assert unnamed.keeps("first", 10.0)
    assert unnamed.keeps("second", 10.5)
    assert list(unnamed.due(10.0 + WAIT_SECONDS / 2)) == []
    assert list(unnamed.due(10.0 + WAIT_SECONDS)) == ["first"]
    assert list(unnamed.due(float("inf"))) == ["second"]


def test_there_is_room_for_so_many_and_the_next_does_not_wait():
    unnamed = Unnamed()
    assert all(unnamed.keeps(number, 1.0) for number in range(MAX_WAITING))
    assert not unnamed.keeps("one more", 1.0)
    assert len(list(unnamed.due(float("inf")))) == MAX_WAITING
