"""What a run says on stderr and in its log file: our own lines and progress bars, without libraries' chatter. No torch.

The level of a run is one of logging's: INFO, for `--quiet` ERROR, for `--verbose` DEBUG. Processes started from here
speak at the same level.
"""

import errno
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from compression_config import UserError
from ranks import is_first

CHATTY = ("torch.utils._pytree",)  # warns, at each import of torchao, of what concerns torchao's makers
LIBRARIES = ("transformers", "datasets", "huggingface_hub")  # each has handlers and a level of its own
BARS_IN_FILES_S = "10"  # between two states of a bar where stderr is a file or a pipe
OURS = ("__main__", *(path.stem for path in Path(__file__).parent.glob("*.py")))


class Plain(logging.Formatter):
    """Log lines in which nothing that comes from a file, such as a label's name, steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line with control characters and the like as escapes."""
        text = super().format(record)
        return "".join(c if c.isprintable() or c in "\n\u200c\u200d" else repr(c)[1:-1] for c in text)


class AboveBars(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        from tqdm import tqdm  # reads TQDM_DISABLE when it is imported

        tqdm.write(self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """Appends log lines with their times; a full disk costs lines, not the run."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(Plain("%(asctime)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: whoever fills the disk is told by the run."""

    def close(self) -> None:
        """Close the file, whatever could not be written."""
        with suppress(OSError):
            super().close()


def spoken_level() -> int:
    """The level at which this process speaks."""
    shown = (handler.level for handler in logging.getLogger().handlers if isinstance(handler, AboveBars))
    return next(shown, logging.INFO)


def start_logging(level: int = logging.INFO) -> None:
    """Send our log of this level to stderr; libraries speak only of errors, at DEBUG of more. At ERROR there are no
    bars. Call it before libraries are imported."""
    if not is_first():
        level = logging.ERROR
    if level == logging.ERROR:
        os.environ["TQDM_DISABLE"] = "1"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", BARS_IN_FILES_S)
    root, shown = logging.getLogger(), AboveBars(level)
    shown.setFormatter(Plain())
    for handler in [handler for handler in root.handlers if isinstance(handler, AboveBars)]:
        root.removeHandler(handler)
    root.addHandler(shown)
    root.setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    for name in OURS:
        logging.getLogger(name).setLevel(min(level, logging.INFO))
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.captureWarnings(level == logging.DEBUG)
    if level > logging.DEBUG:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")


@contextmanager
def kept_log() -> Iterator[Callable[..., None]]:
    """A function that names the files which the log of the block is appended to: what was said before its call too,
    and last what ended the block, where that was an error."""
    root, files = logging.getLogger(), []
    held = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)  # until there is somewhere to write to
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


def is_disk_full(error: Exception, folder: str) -> bool:
    """Whether an error comes from a full disk, as Python or a library's native code tells it."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return full or shutil.disk_usage(folder if os.path.isdir(folder) else ".").free < 2**20


def start_process(level: int = logging.INFO) -> None:
    """Set up a process that loads models: our log, and no bar for each model that is read from disk."""
    start_logging(level)
    import datasets  # noqa: F401  (sets up its logger, as the others do)
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in LIBRARIES:  # through our handlers
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.INFO if level == logging.DEBUG else logging.ERROR)
    disable_progress_bar()
    (disable_progress_bars if level == logging.ERROR else enable_progress_bars)()  # those of downloads


def start_worker(level: int) -> None:
    """Set up the measuring process: it ends with its parent, even with one that was killed."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    start_process(level)
