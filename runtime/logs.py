"""What a run says on stderr and in its log file: our own lines and progress bars, without libraries' chatter. No torch.

The level of a run is one of logging's: INFO, for `--quiet` ERROR, for `--verbose` DEBUG. Processes started from here
speak at the same level.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from compression_config import UserError
from runtime.distributed import is_main_process

NOISY_LOGGERS = (
    "torch.utils._pytree",
)  # warns, at each import of torchao, of what concerns torchao's makers

LIBRARY_LOGGERS = (
    "transformers",
    "datasets",
    "huggingface_hub",
)  # each has handlers and a level of its own

BAR_INTERVAL_IN_FILES_S = "10"  # between two states of a bar where stderr is a file or a pipe

ROOT = Path(__file__).parent.parent
PACKAGES = ("corpus", "encoders", "engines", "experiments", "reporting", "runtime")
OUR_LOGGERS = ("__main__", *PACKAGES, *(path.stem for path in ROOT.glob("*.py")))


class EscapingFormatter(logging.Formatter):
    """Log lines in which nothing that comes from a file, such as a label's name, steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line with control characters and the like as escapes."""
        text = super().format(record)
        return "".join(
            c if c.isprintable() or c in "\n\u200c\u200d" else repr(c)[1:-1] for c in text
        )


class ProgressBarHandler(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        from tqdm import tqdm  # reads TQDM_DISABLE when it is imported

        tqdm.write(self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """Appends log lines with their times; a full disk costs lines, not the run."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(EscapingFormatter("%(asctime)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: whoever fills the disk is told by the run."""

    def close(self) -> None:
        """Close the file, whatever could not be written."""
        with suppress(OSError):
            super().close()


def current_level() -> int:
    """The level at which this process speaks."""
    shown = (
        handler.level
        for handler in logging.getLogger().handlers
        if isinstance(handler, ProgressBarHandler)
    )
    return next(shown, logging.INFO)


def start_logging(level: int = logging.INFO) -> None:
    """Send our log of this level to stderr; libraries speak only of errors, at DEBUG of more. At ERROR there are no
    bars. Call it before libraries are imported."""
    if not is_main_process():
        level = logging.ERROR
    if level == logging.ERROR:
        os.environ["TQDM_DISABLE"] = "1"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", BAR_INTERVAL_IN_FILES_S)
    root, shown = logging.getLogger(), ProgressBarHandler(level)
    shown.setFormatter(EscapingFormatter())
    for handler in [
        handler for handler in root.handlers if isinstance(handler, ProgressBarHandler)
    ]:
        root.removeHandler(handler)
    root.addHandler(shown)
    root.setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(min(level, logging.INFO))
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.captureWarnings(level == logging.DEBUG)
    if level > logging.DEBUG:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")


@contextmanager
def log_to_files() -> Iterator[Callable[..., None]]:
    """A function that names the files which the log of the block is appended to: what was said before its call too,
    and last what ended the block, where that was an error."""
    root, files = logging.getLogger(), []
    held = MemoryHandler(
        sys.maxsize, flushLevel=sys.maxsize
    )  # until there is somewhere to write to
    root.addHandler(held)

    def write_to(*paths: Path) -> None:
        root.removeHandler(held)
        for path in paths:
            files.append(LogFile(path))
            root.addHandler(files[-1])
            for record in held.buffer:
                files[-1].handle(record)

    try:
        yield write_to
    except BaseException as error:
        told = isinstance(error, UserError | KeyboardInterrupt)
        said = f"error: {error}" if str(error) else "stopped"
        trace = "" if told else "".join(traceback.format_exception(error)).rstrip()
        for file in files:
            file.handle(logging.makeLogRecord({"msg": trace or said}))
        raise
    finally:
        for handler in (held, *files):
            root.removeHandler(handler)
            handler.close()


def set_up_process(level: int = logging.INFO) -> None:
    """Set up a process that loads models: our log, and no bar for each model that is read from disk."""
    start_logging(level)
    import datasets  # noqa: F401  (sets up its logger, as the others do)
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in LIBRARY_LOGGERS:  # through our handlers
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    disable_progress_bar()
    (
        disable_progress_bars if level == logging.ERROR else enable_progress_bars
    )()  # those of downloads
