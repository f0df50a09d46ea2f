"""Draws docs/pictures/: a bad night on a node as the page shows it. `make pictures` runs it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.page.night import bad_night, shown
from tests.page.webdriver import Browser, browser

MAX_BYTES = 150_000
WIDTH = 1140
SCALE = 0.8
"""Pixels of the picture for one of the window: it is for a page of text."""


def main(folder: Path) -> None:
    """Draw all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, shown(bad_night()) as address, browser(Path(place)) as window:
        window.look("dark", WIDTH, 1080, SCALE)
        window.open(address)
        window.until("document.querySelectorAll('#lookups tbody tr').length > 20")
        save(window, folder / "page.png")
        window.look("light", WIDTH, 800, SCALE)
        window.set("#filter-cause", "UpstreamTimeout")
        window.click("#lookups tbody tr .open")
        window.until("document.querySelector('#lookup .path svg')")
        window.script("document.activeElement.blur()")
        save(window, folder / "lookup.png")


def save(window: Browser, path: Path) -> None:
    """Write what the window shows, if it is small enough for a repository."""
    data = window.picture()
    if len(data) > MAX_BYTES:
        sys.exit(f"{path} has {len(data)} bytes; {MAX_BYTES} are allowed")
    path.write_bytes(data)
    print(f"{path}: {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
