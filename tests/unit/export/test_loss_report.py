"""Every loss is said once, with what to do, and nothing is said without one."""

from types import SimpleNamespace

from agent.capture.losses import Losses
from agent.export.loss_report import LossReport

SAID = "records lost by the capture itself, sessions concerned are SampleLoss: "


def report():
    printer = SimpleNamespace(
        suppressed=0,
        options=SimpleNamespace(log_rate=100),
        failures=SimpleNamespace(summary=lambda: ["9 lines alike"]),
        budget=SimpleNamespace(refused=0),
    )
    return LossReport(printer, SimpleNamespace(lost=0, failure=""))


def test_each_loss_is_said_with_its_option():
    losses = report()
    losses.printer.suppressed, losses.printer.budget.refused, losses.outlet.lost = 3, 4, 2
    assert list(losses.lines(Losses(ring_full=4, nested=1))) == [
        "3 lines of succeeded sessions held back (--log-rate 100)",
        "9 lines alike (--failure-rate, --max-lines, --max-bytes)",
        "4 lines held back by --max-lines and --max-bytes in all",
        f"{SAID}4 because the ring was full (--ring-size); 1 because an interrupt hit a program at work",
        "2 lines lost: nobody reads stdout",
    ]


def test_what_was_said_is_not_said_again():
    losses = report()
    losses.printer.failures.summary = list
    losses.printer.suppressed = 3
    assert len(list(losses.lines(Losses(ring_full=4, nested=1)))) == 2
    assert list(losses.lines(Losses(ring_full=4, nested=1))) == []
    assert list(losses.lines(Losses(ring_full=5, nested=1))) == [f"{SAID}1 because the ring was full (--ring-size)"]
