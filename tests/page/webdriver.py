"""A real browser without a window, by the W3C WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
SECONDS = 20.0
START_SECONDS = 60.0
KEYS = {"Escape": "\ue00c", "Enter": "\ue007", "Tab": "\ue004", "ArrowDown": "\ue015", "ArrowUp": "\ue013"}
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    # It asks for names of its maker's, which tests that count lookups would see.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--hide-scrollbars",
    "--window-size=1366,900",
)


class BrowserError(Exception):
    """What the driver said."""


class Browser:
    """One window."""

    def __init__(self, port: int, profile: Path) -> None:
        self._port = port
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        always = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": always}})["sessionId"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401  JSON
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise BrowserError(f"{answer['error']}: {answer['message']}")
        return answer

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401  JSON
        return self._call(method, f"/session/{self._session}{path}", body)

    def open(self, address: str) -> None:
        """Go there."""
        self._ask("POST", "/url", {"url": address})

    def script(self, text: str, *arguments: object) -> Any:  # noqa: ANN401  JSON
        """What a function with this body returns, by the driver, which no policy of the page concerns."""
        return self._ask("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def devtools(self, command: str, **parameters: object) -> Any:  # noqa: ANN401  JSON
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, scheme: str, width: int = 1366, height: int = 900, scale: float = 1) -> None:
        """`dark` or `light`, and the size of the window."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def press(self, *keys: str) -> None:
        """Keys one after the other, as a person does."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.press(*text)

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """What the console said since it was asked last: errors and violations of the policy."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def until(self, expression: str, *arguments: object, seconds: float = SECONDS) -> Any:  # noqa: ANN401  JSON
        """The value of an expression, once it is true."""
        return until(lambda: self.script(f"return {expression}", *arguments), expression, seconds)

    def text(self, selector: str) -> str:
        """What is to be read there."""
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        """The text of each."""
        return list(
            self.script("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)
        )

    def set(self, selector: str, value: str) -> None:
        """Give a field a value, as if it were chosen or typed."""
        self.script(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input'))",
            selector,
            value,
        )

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.script("return document.querySelectorAll(arguments[0]).length", selector))

    def click(self, selector: str) -> None:
        """On the first one, once there is one."""
        self.until("document.querySelector(arguments[0]) !== null", selector)
        self.script("document.querySelector(arguments[0]).click()", selector)

    def close(self) -> None:
        """End the browser."""
        self._ask("DELETE", "")


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:  # noqa: ANN401  JSON
    """The value of the condition, once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for: {what}"
        time.sleep(0.05)
    return value


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser of our own, while the block lasts."""
    assert DRIVER
    log, profile = folder / "chromedriver", folder / "profile"
    environment = os.environ | {"HOME": str(folder)}
    with log.open("w") as out:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        port = until(lambda: re.search(r"successfully on port (\d+)", log.read_text()), "chromedriver", START_SECONDS)
        one = Browser(int(port[1]), profile)
        try:
            yield one
        finally:
            one.close()
    finally:
        driver.terminate()
        driver.wait()
