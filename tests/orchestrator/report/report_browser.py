"""A headless Chromium, driven over its own debugging protocol: open a file, read, click, look."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
START_S, ANSWER_S = 60, 60


class Browser:
    """One page of a Chromium of its own; `requests` and `errors` collect what the page did."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []

    def __enter__(self) -> "Browser":
        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while not port_file.exists() or len(port_file.read_text().split()) < 2:
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port, path = port_file.read_text().split()
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._call(method, session=self._session, **arguments)

    def _call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": arguments}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_S))
            self._note(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(given["exceptionDetails"]["exception"].get("description", "?"))
        if event.get("method") == "Log.entryAdded":
            self.errors.append(given["entry"]["text"])
        if event.get("method") == "Runtime.consoleAPICalled" and given["type"] == "error":
            self.errors.append(str(given["args"]))

    def open(
        self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> float:
        """Open a file and return the seconds until the page says that it is ready."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        began = time.monotonic()
        self.call("Page.navigate", url=file.absolute().as_uri())
        while self.read("document.body && document.body.dataset.ready") != "yes":
            assert time.monotonic() - began < ANSWER_S, self.errors
            time.sleep(0.02)
        return time.monotonic() - began

    def read(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))
