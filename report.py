"""Print the table of finished runs again, or write one page that compares them.

`python report.py DIR --format markdown` prints a table for a paper or a page;
`python report.py DIR DIR --html FILE` writes the comparison.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a while
    from runtime.terminal import prepare_terminal

    prepare_terminal("report.py")

import sys
from pathlib import Path

from reporting.results import TABLE_FORMATS, read_rows
from reporting.run_page import write_comparison
from runtime.command_line import ArgumentParser
from runtime.exit_codes import run_command
from runtime.terminal import CommandContext


def build_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="report.py", description="Print the table of a finished run, or compare runs."
    )
    parser.add_argument("directory", nargs="+", help="directory in compressed_models/")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--format",
        choices=tuple(TABLE_FORMATS),
        default="text",
        help="how to print the table (default: text)",
    )
    output.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write to FILE an HTML page that compares the runs, instead of printing tables",
    )
    return parser


def report(argv: list[str] | None, context: CommandContext) -> int:
    """Print the table of each directory, or write one page about all of them."""
    options = build_parser().parse_args(argv)
    if options.html:
        context.output_dir = str(options.html.parent)
        write_comparison(options.directory, options.html)
        return 0
    write_table = TABLE_FORMATS[options.format]
    tables = [write_table(read_rows(directory)) for directory in options.directory]
    print("\n\n".join(tables))
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command("report.py", report, argv)


if __name__ == "__main__":
    sys.exit(main())
