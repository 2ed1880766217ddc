"""Compare the speed, size and memory of any model directories: `python benchmark.py DIR DIR ...`.

All formats of all directories are measured interleaved (engines/latency.py), on the CPU.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a while
    from runtime.terminal import prepare_terminal

    prepare_terminal("benchmark.py")

import argparse
import sys
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from compression_config import POSITIVE
from engines.classifier import check_unchanged, refuse_own_code
from engines.engine import ModelFormat, formats_in, load_engine
from engines.latency import measure
from engines.linear import LINEAR_NAME, OLD_LINEAR_NAME
from reporting.results import aligned_table
from runtime.command_line import ArgumentParser, convert
from runtime.errors import UserError, first_line
from runtime.exit_codes import run_command
from runtime.logs import set_up_process
from runtime.machine import machine_description
from runtime.terminal import CommandContext

SENTENCES = (
    "It rained.",
    "The train to the coast leaves at nine and stops at every village on the way.",
    "We had soup, bread and a little cheese.",
    "Has anybody seen the key to the old garden gate?",
)
NUM_BUILT_IN_TEXTS = 60
MAX_SENTENCES = 4  # in a built-in text

COLUMNS = (  # heading, metric, pattern
    ("Format", "format", "{}"),
    ("Engine", "engine", "{}"),
    ("Size (MB)", "size_mb", "{:.2f}"),
    ("p50 (ms)", "latency_ms_p50", "{:.2f}"),
    ("p95", "latency_ms_p95", "{:.2f}"),
    ("min", "latency_ms_min", "{:.2f}"),
    ("32 tokens", "latency_ms_p50_len32", "{:.2f}"),
    ("128 tokens", "latency_ms_p50_len128", "{:.2f}"),
    ("Texts/s", "throughput", "{:.0f}"),
    ("Tokenize (ms)", "tokenize_ms", "{:.2f}"),
    ("Load (s)", "load_s", "{:.1f}"),
    ("Memory (MiB)", "rss_mb", "{:.0f}"),
)
TRANSFORMER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def build_parser() -> ArgumentParser:
    """The options of the command; `compare` converts and checks them, to report all errors at
    once."""
    parser = ArgumentParser(
        prog="benchmark.py",
        description="Measure all formats of any model directories, interleaved, on the CPU.",
    )
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a directory that a stage or a run wrote",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="UTF-8 file with one text per line (default: built-in sentences)",
    )
    parser.add_argument(
        "--threads", metavar="INT", type=int, help="threads per engine (default: torch's default)"
    )
    parser.add_argument(
        "--max_length", metavar="INT", default="128", help="tokens per text (default: 128)"
    )
    return parser


def formats_to_time(directory: Path, max_length: int) -> list[str]:
    """The formats in a directory; UserError if it contains none that can be served."""
    if not directory.is_dir():
        raise UserError(f"DIR is {directory}, but there is no such directory")
    formats = formats_in(directory)
    if not formats and (directory / OLD_LINEAR_NAME).exists():
        raise UserError(
            f"DIR is {directory}, but has only {OLD_LINEAR_NAME}, a pickle of an older version; "
            "run main.py again, which stores it as arrays"
        )
    if not formats:
        raise UserError(
            f"DIR is {directory}, but must contain model.safetensors, onnx/*.onnx, openvino/*.xml "
            f"or {LINEAR_NAME}"
        )
    if formats != ["linear"]:
        refuse_own_code("DIR", directory)
        check_transformer(directory, max_length)
    for format_name in formats:
        check_unchanged(directory, format_name, "DIR")
        check_loads(directory, format_name, max_length)
    return formats


def check_loads(directory: Path, format_name: str, max_length: int) -> None:
    """Raise UserError if a format does not load, or does not compute a text."""
    from encoders.model_files import UnusableModel

    try:
        engine = load_engine(directory, format_name, max_length)
        engine.forward(engine.encode([SENTENCES[0]]))
    except UnusableModel as error:
        raise UserError(f"DIR is {directory}, but {error}") from None
    except Exception as error:  # each engine raises its own types
        raise UserError(
            f"DIR is {directory}, but its {format_name} failed to load: {first_line(error)}"
        ) from None


def check_transformer(directory: Path, max_length: int) -> None:
    """Raise UserError if a transformer lacks config or tokenizer, or reads fewer than `max_length`
    tokens."""
    from transformers import AutoConfig

    from encoders.families import position_limit
    from encoders.family_table import check_family
    from encoders.model_files import UnusableModel, read_object

    if not all((directory / name).is_file() for name in TRANSFORMER_FILES):
        raise UserError(
            f"DIR is {directory}, but must contain config.json, tokenizer.json and "
            "tokenizer_config.json next to its model"
        )
    try:
        check_family(read_object(directory / "config.json"))
        limit = position_limit(
            AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        )
    except UnusableModel as error:
        raise UserError(f"DIR is {directory}, but {error}") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"DIR is {directory}, but its config.json cannot be read as that of an encoder"
        ) from None
    if limit < max_length:
        raise UserError(
            f"--max_length is {max_length}, but {directory} reads at most {limit} tokens"
        )


def read_texts(path: str | None) -> list[str]:
    """The non-blank lines of a file; if None, built-in texts of one to four sentences."""
    if path is None:
        sentences = cycle(SENTENCES)
        return [
            " ".join(islice(sentences, 1 + number % MAX_SENTENCES))
            for number in range(NUM_BUILT_IN_TEXTS)
        ]
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts is {path}, but it cannot be read as UTF-8: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"--texts is {path}, but must contain one text per line")
    return texts


def name_formats(directories: list[Path], formats: list[list[str]]) -> list[ModelFormat]:
    """Every format of every directory; repeated ones are numbered: `DIR (2)`."""
    named: list[ModelFormat] = []
    times_given: dict[str, int] = {}
    for directory, format_names in zip(directories, formats, strict=True):
        for format_name in format_names:
            name = str(directory)
            if len(format_names) > 1:
                name += f" [{format_name}]"
            times_given[name] = times_given.get(name, 0) + 1
            if times_given[name] > 1:
                named.append(ModelFormat(f"{name} ({times_given[name]})", directory, format_name))
            else:
                named.append(ModelFormat(name, directory, format_name))
    return named


def collect_errors(errors: list[str], check: Callable[..., Any], *arguments: Any) -> Any:
    """`check(*arguments)`; if it raises UserError, add its lines to `errors` and return None."""
    try:
        return check(*arguments)
    except UserError as error:
        errors += error.lines
        return None


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check all options, then measure every format; one row each. UserError lists all errors."""
    errors: list[str] = []
    if options.threads is not None and not POSITIVE.is_met(options.threads):
        errors.append(f"--threads is {options.threads}, but {POSITIVE.text}")
    max_length = collect_errors(errors, convert, "max_length", options.max_length)
    texts = collect_errors(errors, read_texts, options.texts)
    formats = []
    for directory in options.directories:
        formats.append(collect_errors(errors, formats_to_time, directory, max_length or 0))
    if errors:
        raise UserError(*errors)

    from evaluation import size_on_disk

    named = name_formats(options.directories, formats)
    times = measure(named, texts, max_length, "cpu", seed=0, threads=options.threads)
    rows = []
    for model_format in named:
        row = {"format": model_format.name, "engine": model_format.engine}
        rows.append(row | times[model_format.name] | size_on_disk(model_format))
    return rows


def row_cells(row: dict[str, Any]) -> list[str]:
    """A row of the printed table: `*` marks unsteady times, `-` a metric that was not measured."""
    cells = []
    for _, metric, pattern in COLUMNS:
        if row[metric] is None:
            cells.append("-")
        elif metric == "format" and not row["steady"]:
            cells.append(f"{row['format']} *")
        else:
            cells.append(pattern.format(row[metric]))
    return cells


def print_comparison(argv: list[str] | None, context: CommandContext) -> int:
    """Compare the directories of the command line; the table goes to stdout, all else to stderr."""
    options = build_parser().parse_args(argv)
    set_up_process()
    rows = compare(options)
    machine = machine_description()
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {rows[0]['threads']} threads",
        file=sys.stderr,
    )
    if not all(row["steady"] for row in rows):
        print(
            "the machine was busy: do not trust the times of the formats marked *",
            file=sys.stderr,
        )
    headings = [heading for heading, _, _ in COLUMNS]
    print(aligned_table([headings, *map(row_cells, rows)]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command("benchmark.py", print_comparison, argv)


if __name__ == "__main__":
    sys.exit(main())
