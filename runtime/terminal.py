"""How a command is connected to its terminal: standard streams, and signals that end it.

A thread ends the command, because Python runs the handler of a signal in the main thread only, and
only after the call of native code that the thread is in. Unfinished files are left as a killed
process leaves them. Imports that take a while are in functions: until `prepare_terminal` is called,
an interrupt is a traceback.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Buffer = bytes | bytearray | memoryview

ENDINGS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
TERMINAL_SIGNALS = ("SIGINT", "SIGHUP")  # a terminal sends them to child processes, too
STREAMS = ("stdin", "stdout", "stderr")  # in the order of their descriptors
FIRST_SIGNAL_CODE = 128  # a shell's exit code of a process that signal n ended is 128 + n


class CommandContext:
    """What error messages need to know about the running command; the command fills it in as it
    learns it."""

    def __init__(self) -> None:
        self.output_dir = "."
        self.can_resume = False  # whether the same command continues where this one stopped
        self.results = ""  # where the results are that are also printed
        self.log_files: list[Path] = []

    @property
    def resume_hint(self) -> str:
        """What a line about an interruption ends with."""
        return "; run the same command again to resume" if self.can_resume else ""


class StandardOutput(io.FileIO):
    """Standard output, which remembers the error if it cannot be written."""

    error: OSError | None = None

    def __init__(self) -> None:
        super().__init__(sys.stdout.fileno(), "w", closefd=False)

    def write(self, data: Buffer) -> int | None:
        """Write bytes; returns how many were written."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


class Terminal:
    """The state of this process: the running command, its standard output, and the streams that
    were closed."""

    context = CommandContext()
    stdout: StandardOutput | None = None
    closed_streams: tuple[str, ...] = ()


def prepare_terminal(program: str) -> None:
    """Open the closed standard streams, and end the program when a signal asks for it.

    Called before a command's slow imports. A signal that is ignored, as by `nohup`, stays ignored.
    Within another program, such as a notebook, nothing is changed.
    """
    if not is_whole_program():
        return
    Terminal.closed_streams = open_closed_streams()
    Terminal.stdout = StandardOutput()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(Terminal.stdout),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",  # a terminal need not be able to show every label
        line_buffering=sys.stdout.isatty(),
    )
    endings = {}
    for name, ending in ENDINGS.items():
        number = getattr(signal, name, None)  # Windows lacks SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave_to_thread)
            endings[number] = ending
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    error_stream = os.dup(sys.stderr.fileno())  # the stream itself may be redirected
    arguments = (program, endings, read_end, error_stream)
    threading.Thread(target=end_on_signal, args=arguments, daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(restore_handlers, [*endings]))


def is_whole_program() -> bool:
    """Whether this process is the command, and not a notebook or a program that runs it."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    return is_main_thread and sys.stdout is sys.__stdout__ and "ipykernel" not in sys.modules


def restore_handlers(numbers: list[int]) -> None:
    """Give a forked process the default handlers: otherwise its signals would end this process."""
    signal.set_wakeup_fd(-1)
    for number in numbers:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def open_closed_streams() -> tuple[str, ...]:
    """Open each closed standard stream as the null device, and return their names.

    Otherwise the next file that is opened would take its place.
    """
    closed = []
    for descriptor, name in enumerate(STREAMS):
        if getattr(sys, name) is not None:
            continue
        closed.append(name)
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    return tuple(closed)


def leave_to_thread(_number: int, _frame: object) -> None:
    """The handler in the main thread: `end_on_signal` does the work."""


def end_on_signal(program: str, endings: dict[int, str], read_end: int, error_stream: int) -> None:
    """Wait for a signal in `endings`, then end this process and its child processes."""
    number = 0
    while number not in endings:
        number = os.read(read_end, 1)[0]
    line = endings[number] + Terminal.context.resume_hint
    silence_main_thread()
    delete_temporary_directories()
    end_child_processes()  # before the line, which is then the last one
    if os.environ.get("RANK", "0") == "0":  # of the processes of a run, one reports it
        prefix = "\n" if has_progress_bar() else ""
        with suppress(OSError):
            os.write(error_stream, f"{prefix}{program}: {line}\n".encode())
    write_to_logs(line)
    os._exit(FIRST_SIGNAL_CODE + number)


def has_progress_bar() -> bool:
    """Whether a progress bar is on the last line of the terminal."""
    tqdm = sys.modules.get("tqdm") if sys.stderr.isatty() else None
    return bool(tqdm and getattr(getattr(tqdm, "tqdm", None), "_instances", None))


def silence_main_thread() -> None:
    """Discard what the main thread still prints, such as an error about an ended child process."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)


def write_to_logs(line: str) -> None:
    """Append a line to the log files of the command."""
    from datetime import datetime

    time = datetime.now().strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    for path in Terminal.context.log_files:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{time} {line}\n")


def delete_temporary_directories() -> None:
    """Delete the temporary directories of this process, as a normal exit would."""
    if "tempfile" not in sys.modules:
        return
    from tempfile import TemporaryDirectory

    for value in gc.get_objects():
        if type(value) is TemporaryDirectory:
            with suppress(OSError):
                value.cleanup()


def end_child_processes() -> None:
    """Kill all processes that this one started, and theirs."""
    if "psutil" not in sys.modules:  # nothing has been started yet
        return
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def blocked_terminal_signals() -> Iterator[None]:
    """Child processes that the block starts never receive the signals of the terminal: this
    process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    numbers = {getattr(signal, name) for name in TERMINAL_SIGNALS if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
