"""A headless Chromium that shows pages at a given width, in the dark or as printed, and answers questions."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars"


class Browser:
    """Speaks Chromium's protocol over two pipes, in JSON texts that end with a zero byte."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.said = to, _messages(back)
        self.number, self.session = 0, {}
        page = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=page, flatten=True)[
            "sessionId"
        ]
        self.session = {"sessionId": session}
        self.ask("Page.enable")

    def ask(self, method: str, **params: object) -> dict:
        """The answer to a command; events that come before it are passed over."""
        self.number += 1
        call = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.to, json.dumps(call).encode() + b"\0")
        answer = next(said for said in self.said if said.get("id") == self.number)
        assert "result" in answer, answer
        return answer["result"]

    def show(
        self,
        page: Path,
        width: int,
        height: int = 900,
        dark: bool = False,
        printed: bool = False,
    ) -> None:
        """Load the file `page` in a window of `width` × `height` CSS pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask(
            "Emulation.setEmulatedMedia",
            media="print" if printed else "screen",
            features=[scheme],
        )
        self.ask("Page.navigate", url=page.resolve().as_uri())
        next(said for said in self.said if said.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> object:
        """What a JavaScript expression gives on the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


def _messages(back: int) -> Iterator[dict]:
    rest = b""
    while part := os.read(back, 1 << 20):
        *whole, rest = (rest + part).split(b"\0")
        yield from map(json.loads, whole)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, without network; `profile` is a folder that it may fill."""
    (theirs, to), (back, its) = os.pipe(), os.pipe()
    options = [
        *FLAGS.split(),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
    ]
    redirected = f'exec "$@" 3<&{theirs} 4>&{its}'  # Chromium reads from descriptor 3 and writes to 4
    call = [
        "bash",
        "-c",
        redirected,
        "bash",
        CHROMIUM,
        *options,
        "--remote-debugging-pipe",
    ]
    process = subprocess.Popen(call, pass_fds=(theirs, its), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(its)
    try:
        yield Browser(to, back)
    finally:
        os.close(to)  # which ends it
        process.wait(60)
        os.close(back)
