"""agent.capture.losses: when records were lost, so that no lookup of that time is told wrong."""

from agent.capture.losses import Loss, Losses, LossWatch


def test_a_full_ring_is_told_with_the_time_since_the_last_look():
    watch = LossWatch(looked_ns=100)
    assert watch.look(Losses(), 150, 200) is None
    assert watch.look(Losses(ring_full=3), 150, 300) == Loss(Losses(ring_full=3), 200, 300)
    assert watch.look(Losses(ring_full=3), 150, 400) is None


def test_skipped_runs_may_have_been_skipped_since_these_were_looked_at_last():
    watch = LossWatch(looked_ns=100)
    watch.look(Losses(), 100, 900)
    watch.look(Losses(), 100, 1000)
    assert watch.look(Losses(skipped_runs=2), 1100, 1100) == Loss(Losses(skipped_runs=2), 100, 1100)
    assert watch.look(Losses(skipped_runs=3), 2100, 2100) == Loss(Losses(skipped_runs=1), 1100, 2100)


def test_before_they_were_looked_at_once_it_is_since_the_capture_began():
    assert LossWatch(looked_ns=100).look(Losses(skipped_runs=1), 900, 900) == Loss(Losses(skipped_runs=1), 100, 900)
