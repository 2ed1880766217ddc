"""Screenshots of an HTML page in headless Chromium: phone and desktop width, light and dark.

`python scripts/screenshots.py PAGE FOLDER`. The exit code is 1 if the page requests anything, if
the browser reports an error or a warning, or if the page is wider than the window.
"""

import argparse
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
COMMAND_FD = 3  # --remote-debugging-pipe reads commands from file descriptor 3
ANSWER_FD = 4  # and writes answers to 4
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"phone": 390, "desktop": 1280}
SCHEMES = ("light", "dark")
HEIGHT = 844
MOBILE_BELOW = 600  # pixels
COMPLAINTS = (
    "Runtime.consoleAPICalled",
    "Runtime.exceptionThrown",
    "Log.entryAdded",
    "Audits.issueAdded",
)
OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def chromium() -> str | None:
    """The path of the browser; None if it is not installed."""
    for name in EXECUTABLES:
        path = shutil.which(name)
        if path:
            return path
    return None


class Tab:
    """A browser tab, controlled by the DevTools protocol.

    `events` are the events since the last `open`. Messages are JSON and end with a zero byte.
    """

    def __init__(self, answer_fd: int, command_fd: int):
        self.answers = os.fdopen(answer_fd, "rb")
        self.commands = os.fdopen(command_fd, "wb")
        self.last_id = 0
        self.session: str | None = None
        self.buffer = b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def read_message(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.buffer:
            received = self.answers.read1()
            if not received:
                raise RuntimeError("Chromium has ended")
            self.buffer += received
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that arrive before it are appended to `events`."""
        self.last_id += 1
        command = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        self.commands.write(json.dumps(command).encode() + b"\0")
        self.commands.flush()
        answer = self.read_message()
        while answer.get("id") != self.last_id:
            self.events.append(answer)
            answer = self.read_message()
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path) -> None:
        """Load a page and wait for its load event."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read_message())

    def show(self, width: int, scheme: str = "light") -> None:
        """Emulate a window width and a user's color scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=HEIGHT,
            deviceScaleFactor=1,
            mobile=width < MOBILE_BELOW,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Requested URLs, without the page itself and `data:` URLs."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """Console messages, exceptions and issues that the browser reported."""
        return [event["params"] for event in self.events if event["method"] in COMPLAINTS]

    def picture(self) -> bytes:
        """A PNG of the complete page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a new Chromium process that ends with the block."""
    chromium_reads, command_fd = os.pipe()
    answer_fd, chromium_writes = os.pipe()

    def move_pipes() -> None:
        """In the child process: the pipes at the file descriptors that Chromium uses."""
        spare = os.dup(chromium_writes)  # COMMAND_FD may overwrite it
        os.dup2(chromium_reads, COMMAND_FD)
        os.dup2(spare, ANSWER_FD)
        os.set_inheritable(COMMAND_FD, True)
        os.set_inheritable(ANSWER_FD, True)

    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [chromium(), *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=move_pipes,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(chromium_reads)
        os.close(chromium_writes)
        tab = Tab(answer_fd, command_fd)
        try:
            yield tab
        finally:
            tab.session = None  # Browser.close belongs to no session
            tab.call("Browser.close")
            process.wait()
            tab.answers.close()
            tab.commands.close()


def take_pictures(tab: Tab, page: Path, folder: Path) -> list[str]:
    """Write the pictures of an HTML page; a line per error."""
    tab.open(page)
    errors = [f"the page requests {url}" for url in tab.requests()]
    errors += [f"the browser reports {complaint}" for complaint in tab.complaints()]
    for name, width in WIDTHS.items():
        for scheme in SCHEMES:
            tab.show(width, scheme)
            (folder / f"{page.stem}_{name}_{scheme}.png").write_bytes(tab.picture())
        overflow = tab.value(OVERFLOWING)
        if overflow > 0:
            errors.append(f"the page is {overflow} pixels too wide at {width}")
    return errors


def main(argv: list[str] | None = None) -> int:
    """Write four pictures and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", metavar="PAGE", type=Path, help="HTML file")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="directory of the pictures")
    options = parser.parse_args(argv)
    if chromium() is None:
        parser.error(f"none of {', '.join(EXECUTABLES)} is installed, but a browser is needed")
    options.folder.mkdir(parents=True, exist_ok=True)
    with browser() as tab:
        errors = take_pictures(tab, options.page, options.folder)
    for error in errors:
        print(error)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
