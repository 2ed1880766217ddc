"""What a run logs on stderr and into its log file: our own lines and progress bars. No torch.

The level of a run is INFO, ERROR for `--quiet`, or DEBUG for `--verbose`. Library logs are shown at
DEBUG only. Worker processes use the same level.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from runtime.distributed import is_main_process
from runtime.errors import UserError, escape_unprintable
from runtime.files import delete

ROOT = Path(__file__).parent.parent
PACKAGES = ("corpus", "encoders", "engines", "experiments", "reporting", "runtime")
OUR_LOGGERS = ("__main__", *PACKAGES, *(path.stem for path in ROOT.glob("*.py")))
LIBRARY_LOGGERS = ("transformers", "datasets", "huggingface_hub")  # they install handlers
NOISY_LOGGERS = ("torch.utils._pytree",)  # warns about torchao's own code at each import
CURSOR_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
BAR_INTERVAL_IN_FILES_S = "5"  # between two states of a bar if stderr is a file or a pipe


class LineStream(io.TextIOWrapper):
    """Standard error as a file or a pipe, which has no cursor to move: each state of a progress bar
    is a line of its own."""

    is_after_bar = False

    def __init__(self, descriptor: int, encoding: str):
        file = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
        super().__init__(file, encoding=encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write a text; one that starts with a carriage return is a state of a bar."""
        plain = CURSOR_CODE.sub("", text)
        if plain.startswith("\r"):
            state = plain.strip()  # empty if it erases the bar
            super().write(f"{state}\n" if state else "")
            self.is_after_bar = True
        elif plain.strip("\n") or not self.is_after_bar:  # otherwise it ends the line of a bar
            super().write(plain)
            self.is_after_bar = False
        return len(text)


class EscapingFormatter(logging.Formatter):
    """Escapes control characters, so that text from a file cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line with unprintable characters as escapes."""
        return escape_unprintable(super().format(record), keep="\n")


class ProgressBarHandler(logging.Handler):
    """Writes log lines to stderr above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        from tqdm import tqdm  # it reads TQDM_DISABLE when it is imported

        with suppress(OSError):  # a terminal that is gone does not stop the run
            tqdm.write(self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """Appends log lines with their times; a full disk loses lines but does not stop the run."""

    def __init__(self, path: Path):
        if path.is_dir():
            delete(path)
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(EscapingFormatter("%(asctime)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore the error: the run itself reports a full disk."""

    def close(self) -> None:
        """Close the file, whether or not everything could be written."""
        with suppress(OSError):
            super().close()


def progress_bar_handlers() -> list[ProgressBarHandler]:
    """Our handlers on the root logger."""
    handlers = logging.getLogger().handlers
    return [handler for handler in handlers if isinstance(handler, ProgressBarHandler)]


def current_level() -> int:
    """The log level of this process."""
    handlers = progress_bar_handlers()
    return handlers[0].level if handlers else logging.INFO


def library_level(level: int) -> int:
    """The log level for libraries if ours is `level`."""
    return logging.INFO if level == logging.DEBUG else logging.ERROR


def start_logging(level: int = logging.INFO) -> None:
    """Send log lines of this level to stderr. Call it before libraries are imported.

    At ERROR there are no progress bars. Only the main process logs below ERROR.
    """
    if not is_main_process():
        level = logging.ERROR
    if level == logging.ERROR:
        os.environ["TQDM_DISABLE"] = "1"
    if not sys.stderr.isatty():
        if sys.stderr is sys.__stderr__:  # neither a notebook's nor a test's
            sys.stderr = LineStream(sys.stderr.fileno(), sys.stderr.encoding)
        os.environ.setdefault("TQDM_MININTERVAL", BAR_INTERVAL_IN_FILES_S)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    root = logging.getLogger()
    for handler in progress_bar_handlers():
        root.removeHandler(handler)
    handler = ProgressBarHandler(level)
    handler.setFormatter(EscapingFormatter())
    root.addHandler(handler)
    root.setLevel(library_level(level))
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(min(level, logging.INFO))
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(library_level(level))

    logging.captureWarnings(level == logging.DEBUG)
    if level > logging.DEBUG:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")


class RunLog:
    """Buffers log lines until `write_to` names the files that they are appended to."""

    def __init__(self) -> None:
        self.buffer = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        self.files: list[LogFile] = []

    def write_to(self, *paths: Path) -> None:
        """Append the buffered lines and all further ones to these files."""
        root = logging.getLogger()
        root.removeHandler(self.buffer)
        for path in paths:
            file = LogFile(path)
            for record in self.buffer.buffer:
                file.handle(record)
            root.addHandler(file)
            self.files.append(file)

    def write_error(self, error: BaseException) -> None:
        """Append the error that ended the run: its message, and a traceback if it is unexpected."""
        if isinstance(error, UserError | KeyboardInterrupt):
            text = f"error: {error}" if str(error) else "interrupted"
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
        for file in self.files:
            file.handle(logging.makeLogRecord({"msg": text}))


@contextmanager
def log_to_files() -> Iterator[RunLog]:
    """A log of the block, and of the error that ends it, if any."""
    run_log = RunLog()
    root = logging.getLogger()
    root.addHandler(run_log.buffer)
    try:
        yield run_log
    except BaseException as error:
        run_log.write_error(error)
        raise
    finally:
        for handler in (run_log.buffer, *run_log.files):
            root.removeHandler(handler)
            handler.close()


def set_up_process(level: int = logging.INFO) -> None:
    """Set up a process that loads models: our log, and no progress bar for each file that is
    loaded."""
    start_logging(level)
    import datasets  # noqa: F401  (it configures its logger when it is imported)
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(library_level(level))
    disable_progress_bar()
    if level == logging.ERROR:
        disable_progress_bars()  # of downloads
    else:
        enable_progress_bars()
