"""What a run says on stderr: our own lines and progress bars, without the chatter of libraries. No torch."""

import errno
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import warnings

from tqdm import tqdm

from ranks import is_first

CHATTY = ("torchao", "torch.utils._pytree", "transformers", "datasets", "accelerate", "httpx", "bitsandbytes",
          "huggingface_hub")  # fmt: skip


class AboveBars(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """Send our log to stderr; libraries speak only of errors. Call it before they are imported."""
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_first() else logging.ERROR,
                        handlers=[AboveBars()])  # fmt: skip
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")


def is_disk_full(error: Exception, folder: str) -> bool:
    """Whether an error comes from a full disk, as Python or a library's native code tells it."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return full or shutil.disk_usage(folder if os.path.isdir(folder) else ".").free < 2**20


def start_process() -> None:
    """Set up a process that loads models: our log, and no bar for each model that is read from disk."""
    start_logging()
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()  # downloads keep theirs


def start_worker() -> None:
    """Set up the measuring process: it ends with its parent, even with one that was killed."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    start_process()
