"""A headless Chromium over its debugging pipe: messages are JSON, each ended by a zero byte."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
_SECONDS = 60


class Page:
    """One page of a browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._id = write, read, b"", 0
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.requests: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._id:
            self._note(answer)
        if "navigated" in answer.get("error", {}).get("message", ""):
            return {"result": {}}  # the page that was asked is gone
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 1 << 16)
            assert data, "the browser is gone"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))

    def run(self, script: str) -> Any:
        """The value of an expression in the page; None while it changes to another."""
        given = {"expression": script, "returnByValue": True, "userGesture": True}
        return self.send("Runtime.evaluate", **given)["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true; return it."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.02)
        raise AssertionError(f"{script} did not come true; the page says {self.text()!r}")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def key(self, name: str) -> None:
        code = {"Enter": 13, "Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
        number = code.get(name, ord(name[0]))
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=number)

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def text(self) -> str:
        return self.run("document.body.innerText") or ""


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser whose profile is in a folder."""
    assert PATH
    there, ours = os.pipe()
    from_it, theirs = os.pipe()
    command = [
        PATH, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}",
        "--remote-debugging-pipe",
    ]  # fmt: skip
    # The browser reads from its descriptor 3 and writes to its 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{there} 4>&{theirs}', "bash", *command]
    process = subprocess.Popen(
        shell, pass_fds=(there, theirs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(there)
    os.close(theirs)
    try:
        yield Page(ours, from_it)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(from_it)
