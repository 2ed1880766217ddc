"""Error handling of all commands: one line on stderr and an exit code, without a traceback.

| code | meaning |
|---|---|
| 0 | success |
| 1 | a file could not be written or read, an upload failed, or nothing could be done |
| 2 | a wrong option, an unusable file, or a value that is not finite (UserError) |
| 3 | finished, but the quality gate rejected a format |
| 129, 130, 143 | hung up, interrupted, terminated |
"""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

from runtime.distributed import is_main_process
from runtime.errors import UserError, escape_unprintable
from runtime.terminal import CommandContext, Terminal

MIN_FREE_BYTES = 2**20
PLACE_ERRORS = {  # what is wrong with a place on a disk, and not with this program
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


def run_command(
    program: str,
    body: Callable[[list[str] | None, CommandContext], int],
    argv: list[str] | None = None,
) -> int:
    """Run `body(argv, context)` and return its exit code, or that of the error that it raised."""
    context = CommandContext()
    Terminal.context = context
    try:
        if "stdout" in Terminal.closed_streams:
            raise UserError("standard output is closed; redirect it to a file or to /dev/null")
        code = body(argv, context)
        sys.stdout.flush()
        return code
    except UserError as error:
        return error.print_to_stderr(program) if is_main_process() else 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted{context.resume_hint}", file=sys.stderr)
        return 130
    except (
        SystemExit
    ):  # of argparse: help that could not be printed must not be reported as printed
        code = close_stdout(program, context)
        if code:
            return code
        raise
    except Exception as error:
        code = close_stdout(program, context)
        if code is not None:
            return code
        line = place_error(error, context)
        if not line:
            raise
        print(f"{program}: error: {escape_unprintable(line)}", file=sys.stderr)
        return 1


def close_stdout(program: str, context: CommandContext) -> int | None:
    """The exit code if stdout could not be written, which is then discarded; None if it could.

    A reader of stdout that has read enough, such as `head`, is no error.
    """
    error = stdout_error()
    if error is None:
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    hint = f"; the results are in {context.results}" if context.results else ""
    print(
        f"{program}: error: standard output cannot be written: {error.strerror}{hint}",
        file=sys.stderr,
    )
    return 1


def stdout_error() -> OSError | None:
    """The error of the last failed write to stdout, if any."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return Terminal.stdout.error if Terminal.stdout else None


def place_error(error: Exception, context: CommandContext) -> str:
    """What is wrong with a place on a disk; "" if the error has another cause."""
    if is_disk_full(error, context.output_dir):
        hint = "finished work is kept; " if context.can_resume else ""
        return (
            f"no space left in {fullest_directory(error, context.output_dir)}; {hint}free some "
            "space and run the same command again"
        )
    if isinstance(error, OSError) and error.errno in PLACE_ERRORS:
        place = error.filename2 or error.filename
        return f"{place}: {error.strerror}" if place else str(error)
    return ""


def is_disk_full(error: Exception, directory: str) -> bool:
    """Whether an error comes from a full disk, as Python or a library's native code reports it."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return True
    return any(free_bytes(place) < MIN_FREE_BYTES for place in written_directories(directory))


def written_directories(directory: str) -> list[str]:
    """The directories that a command writes into: that of its output, and that of temporary
    files."""
    directories = [directory if os.path.isdir(directory) else "."]
    with suppress(FileNotFoundError):  # no directory can hold a temporary file: all are full
        directories.append(tempfile.gettempdir())
    return directories


def free_bytes(directory: str) -> int:
    """The free bytes of the file system of a directory."""
    return shutil.disk_usage(directory).free


def fullest_directory(error: Exception, directory: str) -> str:
    """The directory that has no space left: that of the file that the error names, else the one
    with the least free space."""
    path = getattr(error, "filename", None)
    if isinstance(path, str):
        return os.path.dirname(path) or "."
    place = min(written_directories(directory), key=free_bytes)
    return directory if place == "." else place
