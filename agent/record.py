"""`dnstrail record`: every hop and drop of DNS packets to rotating pcapng files, until told to stop."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from agent.capture.live import Capture
from agent.capturefile.rotation import FileRing
from agent.capturefile.writer import Recorder, Setting
from agent.enrich.local import LocalAddresses
from agent.export.clock import wall_offset_ns
from agent.process import freeze_gc, log

if TYPE_CHECKING:
    from agent.capture.losses import Loss

WAIT_SECONDS = 0.05


class Options(NamedTuple):
    """What the user asked for."""

    write: str
    max_bytes: int = 20 << 20
    max_files: int = 200
    ports: tuple[int, ...] = (53,)
    ring_bytes: int = 16 << 20
    duration_seconds: float | None = None
    node: str = ""


class Recording:
    """One live recording: everything between the ring and the files."""

    def __init__(self, options: Options, capture: Capture) -> None:
        self._capture = capture
        self._duration = options.duration_seconds
        setting = Setting(
            kernel=capture.kernel,
            is_local=LocalAddresses().is_local,
            wall_offset_ns=wall_offset_ns(),
            node=options.node,
            ports=options.ports,
            max_bytes=options.max_bytes,
        )
        self.recorder = Recorder(FileRing(options.write, options.max_files), setting, capture.started_ns)
        self._stopped = False

    def stop(self, *_signal: object) -> None:
        """End after the current turn."""
        self._stopped = True

    def work(self) -> None:
        """Turn until stopped or the duration is over."""
        end = None if self._duration is None else time.monotonic() + self._duration
        while not self._stopped and (end is None or time.monotonic() < end):
            self._capture.wait(WAIT_SECONDS)
            self._drain()
            self.recorder.flush()
        self._drain()
        self.recorder.end(time.monotonic_ns())
        lost = self._capture.losses.total
        log(f"{self.recorder.packets} packets in {self.recorder.files} files; {lost} records lost")

    def _drain(self) -> None:
        while self._capture.drain(self.recorder.take, self._lose) and not self._stopped:
            self.recorder.flush()

    def _lose(self, loss: Loss) -> None:
        self.recorder.lose(loss.lost.total, loss.start_ns, loss.end_ns)
        log(f"records lost by the capture itself: {loss.lost}")


def record(options: Options) -> int:
    """Record.

    Returns:
        0; 1 if the files cannot be written.

    Raises:
        CaptureError: when this kernel or process cannot capture.
    """
    begun = time.monotonic()
    try:
        with Capture(list(options.ports), options.ring_bytes, joined=False) as capture:
            recording = Recording(options, capture)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, recording.stop)
            ports = ", ".join(map(str, options.ports))
            log(f"recording port {ports} of all network namespaces, ready in {time.monotonic() - begun:.2f} s")
            for limit in capture.limits:
                log(f"limited: {limit}")
            freeze_gc()
            recording.work()
    except OSError as error:
        log(f"cannot write {error.filename or options.write}: {error.strerror}")
        return 1
    return 0
