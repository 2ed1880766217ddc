"""Pictures of a page in headless Chromium: at phone and desktop width, light and dark; and what the browser said.

`python scripts/screenshots.py PAGE FOLDER` exits with 1 where the page asks for anything, complains, or overflows.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
WIDTHS = {"phone": 390, "desktop": 1280}
COMPLAINTS = (
    "Runtime.consoleAPICalled",
    "Runtime.exceptionThrown",
    "Log.entryAdded",
    "Audits.issueAdded",
)
OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def chromium() -> str | None:
    """Where the browser is; None where there is none."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Tab:
    """One tab, driven by the DevTools protocol; `events` are all it has told."""

    def __init__(self, reads: int, writes: int):
        self.reads, self.writes, self.count, self.session = (
            os.fdopen(reads, "rb"),
            os.fdopen(writes, "wb"),
            0,
            None,
        )
        self.left, self.events = b"", []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.ask(f"{domain}.enable")

    def heard(self) -> dict[str, Any]:
        """The next message; messages end with a zero byte."""
        while b"\0" not in self.left:
            self.left += self.reads.read1() or sys.exit("Chromium is gone")
        message, self.left = self.left.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a call; events that come before it are kept."""
        self.count += 1
        call = {"id": self.count, "method": method, "params": params}
        self.writes.write(
            json.dumps(call | ({"sessionId": self.session} if self.session else {})).encode()
            + b"\0"
        )
        self.writes.flush()
        while (answer := self.heard()).get("id") != self.count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path) -> None:
        """Load a page to the end."""
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.heard())

    def show(self, width: int, scheme: str = "light") -> None:
        """Take the width of a window and the colour scheme of a user."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def requests(self) -> list[str]:
        """Addresses that were asked for, the page's own and data in it apart."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """What the browser said of the page."""
        return [event["params"] for event in self.events if event["method"] in COMPLAINTS]

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(
            self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        )


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a fresh Chromium, which ends with the block."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()

    def fix_numbers() -> None:  # the protocol is spoken on 3 and 4
        spare = os.dup(theirs_out)
        os.dup2(theirs_in, 3)
        os.dup2(spare, 4)
        for number in (3, 4):
            os.set_inheritable(number, True)

    with tempfile.TemporaryDirectory() as profile:
        running = subprocess.Popen(
            [chromium(), *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=fix_numbers,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        tab = Tab(ours_in, ours_out)
        try:
            yield tab
        finally:
            tab.session = None
            tab.ask("Browser.close")
            running.wait()
            tab.reads.close()
            tab.writes.close()


def main(argv: list[str] | None = None) -> int:
    """Write four pictures, and print what is wrong."""
    page, folder = map(Path, sys.argv[1:] if argv is None else argv)
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as tab:
        tab.open(page)
        wrong = [f"asked for {url}" for url in tab.requests()] + [
            f"said {told}" for told in tab.complaints()
        ]
        for name, width in WIDTHS.items():
            for scheme in ("light", "dark"):
                tab.show(width, scheme)
                (folder / f"{page.stem}_{name}_{scheme}.png").write_bytes(tab.picture())
            wrong += (
                [f"{tab.value(OVERFLOWING)} pixels too wide at {width}"]
                if tab.value(OVERFLOWING) > 0
                else []
            )
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
