"""Chromium without a window, for tests that look at pages: driven through the pipe of its DevTools protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
).split()


class Tab:
    """An open page. It is asked and answers in turn: what it tells by itself is put into `told`."""

    def __init__(self, asks: int, answers: int) -> None:
        self._asks, self._numbers, self._session = asks, itertools.count(1), ""
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._rest = b""
        self.told: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Result of a method of the protocol. Raises AssertionError for an error."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": parameters} | session
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        while (found := self._message()).get("id") != number:
            self.told.append(found)
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._answers.read(1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        found, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(found)
        return message

    def open(self, url: str) -> None:
        """Go to a page, and wait until its scripts have run once."""
        if not self._session:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        self.told.clear()
        self.call("Page.navigate", url=url)
        while not any(one.get("method") == "Page.loadEventFired" for one in self.told):
            self.told.append(self._message())

    def run(self, script: str) -> Any:
        """Value of an expression, of what it promises if that is a promise. Raises AssertionError for an exception."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Value of an expression once it is true. Raises AssertionError if that takes a minute."""
        look = (
            f"const value = ({script}); value ? ends(value) : left-- ? setTimeout(look, 20) : fails(Error({script!r}))"
        )
        return self.run(f"new Promise((ends, fails) => {{ let left = 3000; const look = () => {{ {look} }}; look() }})")

    def drag(self, *places: tuple[float, float], shift: bool = False) -> None:
        """Press the mouse at the first place, and let go at the last one."""
        for step, (x, y) in enumerate([*places, places[-1]]):
            kind = "mousePressed" if step == 0 else "mouseReleased" if step == len(places) else "mouseMoved"
            more = {"buttons": 1, "clickCount": int(kind != "mouseMoved"), "modifiers": 8 * shift}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", **more)

    def look(self, width: int, scheme: str = "light") -> None:
        """Make the window as wide as this, and the scheme of colours light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def faults(self) -> list[str]:
        """Faults of the page as it stands for people who see little or have no mouse: what axe-core calls moderate or worse."""
        self.run(f"{files('axe_core_python').joinpath('axe.min.js').read_text()};0")
        told = "one => one.nodes.map(node => `${one.impact} ${one.id}: ${node.html.slice(0, 200)}`)"
        found = self.run(f"axe.run(document).then(found => found.violations.flatMap({told}))")
        return [one for one in found if not one.startswith("minor ")]

    @property
    def complaints(self) -> list[str]:
        """What the console got since the page was opened."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self.told if one.get("method") in kinds]


def faults_of(page: Path, folder: Path) -> list[str]:
    """Faults of a page in a file, light and dark, on a phone and on a large screen. folder: for the browser's profile."""
    found = []
    with tab(folder) as one:
        for width, scheme in ((390, "light"), (2560, "dark")):
            one.open(page.absolute().as_uri())
            one.look(width, scheme)
            found += one.faults()
            assert one.run("document.documentElement.scrollWidth <= innerWidth"), f"{page} is wider than {width} pixels"
    return found


@contextlib.contextmanager
def tab(folder: Path, *flags: str) -> Iterator[Tab]:
    """Start a browser, whose profile is in `folder`."""
    assert BROWSER
    (asked, asks), (answers, answered) = os.pipe(), os.pipe()
    command = [BROWSER, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", *flags]
    placed = ["bash", "-c", f'exec "$@" 3<&{asked} 4>&{answered}', "bash"]  # dash knows no descriptors of two digits
    started = subprocess.Popen([*placed, *command], pass_fds=(asked, answered), stderr=subprocess.DEVNULL)
    os.close(asked)
    os.close(answered)
    one = Tab(asks, answers)
    try:
        yield one
        one._session = ""
        one.call("Browser.close")
    finally:
        os.close(asks)
        one._answers.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        started.kill()
        started.wait()
