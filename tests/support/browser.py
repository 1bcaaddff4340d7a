"""A real headless Chromium, driven over WebDriver by plain HTTP: chromedriver is all that is needed besides.

    with browser() as page:
        page.open(path); page.run("return document.title")

Source: W3C WebDriver; chromedriver's `goog:chromeOptions`, `goog:loggingPrefs`, `goog/cdp/execute`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Browser", "browser"]

_PORT = re.compile(rb"started successfully on port (\d+)")


class Browser:
    """One session."""

    def __init__(self, base: str) -> None:
        arguments = ["--headless=new", "--disable-gpu", "--window-size=1180,1000"]
        arguments += ["--disable-background-networking", "--disable-component-update"]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        wanted = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._base = f"{base}/session"
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/{session['sessionId']}"

    def open(self, path: Path) -> None:
        """Load a page, and wait until it is there."""
        self._call("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a function body returns in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def click(self, selector: str) -> None:
        """Click on what a CSS selector finds, as a mouse does."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click", {})

    def console(self) -> list[str]:
        """What the page has logged since the last call, errors of the browser included."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._call("POST", "/goog/cdp/execute", body)

    def close(self) -> None:
        """End the session, and the browser."""
        self._call("DELETE", "", None)

    def _call(self, method: str, path: str, body: object) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=120
        ) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Start chromedriver on a free port, and a browser under it; both are gone afterwards."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert driver.stdout is not None
        port = next(match[1] for line in driver.stdout if (match := _PORT.search(line)))
        session = Browser(f"http://127.0.0.1:{port.decode()}")
        try:
            yield session
        finally:
            session.close()
    finally:
        driver.terminate()
        driver.wait(20)
        assert driver.stdout is not None
        driver.stdout.close()
