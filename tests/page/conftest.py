"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.night import Night, shown
from tests.page.webdriver import CHROMIUM, DRIVER, Browser, browser


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and chromedriver are not installed: make test-page installs them")
    with browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def page(window: Browser) -> Iterator[Opener]:
    """Opens the page of a night; nothing may be wrong in the console when the test is over."""
    opener = Opener(window)
    yield opener
    window.open("about:blank")
    opener.close()
    assert [text for text in window.complaints() if "about:blank" not in text] == []


class Opener:
    """Serves nights, and opens their pages."""

    def __init__(self, window: Browser) -> None:
        self._window = window
        self._open: list = []

    def __call__(self, night: Night, scheme: str = "light") -> Browser:
        """The browser, once the page shows something."""
        served = shown(night)
        address = served.__enter__()
        self._open.append(served)
        self._window.look(scheme)
        self._window.complaints()
        self._window.open(address)
        self._window.until("document.querySelector('#live').dataset.state === 'live'")
        return self._window

    def close(self) -> None:
        """End all servers."""
        for served in self._open:
            served.__exit__(None, None, None)
