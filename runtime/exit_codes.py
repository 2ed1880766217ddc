"""Error handling of all commands: one line on stderr and an exit code, without a traceback.

| code | meaning |
|---|---|
| 0 | success |
| 1 | the disk is full, or nothing could be done |
| 2 | a wrong option, an unusable file, or a value that is not finite (UserError) |
| 3 | finished, but the quality gate rejected a format |
| 130 | interrupted |
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from runtime.distributed import is_main_process
from runtime.errors import UserError

MIN_FREE_BYTES = 2**20


@dataclass
class CommandContext:
    """What error messages need to know about the running command; `body` fills it in as it
    learns it."""

    output_dir: str = "."
    can_resume: bool = False  # whether the same command continues where this one stopped


def run_command(
    program: str,
    body: Callable[[list[str] | None, CommandContext], int],
    argv: list[str] | None = None,
) -> int:
    """Run `body(argv, context)` and return its exit code, or that of the error that it raised."""
    context = CommandContext()
    try:
        return body(argv, context)
    except UserError as error:
        return error.print_to_stderr(program) if is_main_process() else 2
    except KeyboardInterrupt:
        hint = "; run the same command again to resume" if context.can_resume else ""
        print(f"{program}: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_disk_full(error, context.output_dir):
            raise
        hint = "finished work is kept; " if context.can_resume else ""
        print(
            f"{program}: error: no space left in {context.output_dir}; {hint}free some space and "
            "run the same command again",
            file=sys.stderr,
        )
        return 1


def is_disk_full(error: Exception, directory: str) -> bool:
    """Whether an error comes from a full disk, as Python or a library's native code reports it."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return True
    existing = directory if os.path.isdir(directory) else "."
    return shutil.disk_usage(existing).free < MIN_FREE_BYTES
