"""Results as CSV, JSON, the table that ends a run, and what its page and a page of many runs say. No torch.

`python report.py DIR --format markdown` prints the table of an earlier run, as a paper or another page needs it;
`python report.py DIR DIR --html FILE` writes one page that compares runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from compression_config import UserError
from reporting.results import FORMATS, read_rows
from reporting.run_page import write_comparison
from runtime.command_line import ArgumentParser


def main(argv: list[str] | None = None) -> int:
    """Print the table of each folder, or write one page of all."""
    what = "Print the table of a finished run, or compare runs."
    parser = ArgumentParser(prog="report.py", description=what)
    parser.add_argument("directory", nargs="+", help="folder in compressed_models/")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--format", choices=tuple(FORMATS), default="text", help="how to print it (default: text)"
    )
    shape.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page that compares the runs instead"
    )
    try:
        args = parser.parse_args(argv)
        if args.html:
            write_comparison(args.directory, args.html)
        else:
            print("\n\n".join(FORMATS[args.format](read_rows(one)) for one in args.directory))
    except UserError as error:
        return error.print_to_stderr("report.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
