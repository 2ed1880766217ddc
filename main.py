"""Compress a text classifier from the command line: options -> data -> plan -> run -> table.

`--help` is printed and errors in the options are reported before any heavy import.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a while
    from runtime.terminal import prepare_terminal

    prepare_terminal("main.py")

import logging
import sys
from typing import TYPE_CHECKING

from compression_config import Options
from runtime.command_line import expand_runs, parse_options
from runtime.distributed import is_main_process
from runtime.errors import ErrorCollector, UserError, check_versions, escape_unprintable
from runtime.exit_codes import run_command
from runtime.hub import check_repository, upload_model
from runtime.logs import log_to_files, set_up_process, start_logging
from runtime.terminal import CommandContext

if TYPE_CHECKING:
    from pathlib import Path

    from corpus.columns import LabeledCorpus

log = logging.getLogger(__name__)


def log_level(options: Options) -> int:
    """The logging level that `--quiet` and `--verbose` ask for."""
    if options.quiet:
        return logging.ERROR
    return logging.DEBUG if options.verbose else logging.INFO


def announcement(options: Options) -> str:
    """The first line of a run: what it is about to do."""
    if options.audit:
        return f"audit {options.dataset_path}"
    pipelines = ", ".join(run.pipeline for run in expand_runs(options))
    return f"pipeline {pipelines} on {options.dataset_path}, teacher {options.teacher_path}"


def read_data(options: Options) -> LabeledCorpus:
    """The labeled file; UserError with everything that is wrong with it, with the model specs, or
    with the repository to upload to.

    It needs no torch, so that these errors are reported within a second or two.
    """
    from corpus.columns import read_corpus
    from encoders.specs import check_specs

    errors = ErrorCollector()
    with errors:
        corpus = read_corpus(options)
    with errors:
        check_specs(expand_runs(options))
    errors.raise_if_any()
    if options.push_to_hub and not options.audit:
        check_repository(options.push_to_hub)
    return corpus


def run_pipelines(argv: list[str] | None, context: CommandContext) -> int:
    """Run the pipelines that the command line names; only the table goes to stdout."""
    options = parse_options(argv)
    context.output_dir = options.output_dir
    context.can_resume = True
    start_logging(log_level(options))
    check_versions()

    with log_to_files() as run_log:
        log.info(announcement(options))
        corpus = read_data(options)
        log.info(
            "%s rows, columns %s and %s; loading PyTorch and Transformers",
            f"{corpus.table.num_rows:,}",
            corpus.text_column,
            ", ".join(corpus.label_columns),
        )
        set_up_process(log_level(options))
        # these import torch, so they come after every check that does not need it
        from corpus.audit import audit_table
        from experiments.ablation import rejection_lines, write_ablation
        from experiments.experiment import finish_experiments, open_experiments
        from reporting.results import text_table

        with open_experiments(expand_runs(options), corpus, run_log) as experiments:
            if options.audit:
                if is_main_process():
                    print(audit_table(experiments[0].audit))
                return 0
            context.log_files = [experiment.log_path for experiment in experiments]
            for experiment in experiments:
                experiment.run()
            if not is_main_process():
                return 0
            results = finish_experiments(experiments)
            context.results = str(experiments[0].artifact)
            rows = write_ablation(experiments, results) if options.run_ablation else results[0]

    print(text_table(rows))
    rejections = rejection_lines(experiments)
    for line in rejections:
        print(f"main.py: {escape_unprintable(line)}", file=sys.stderr)
    if options.push_to_hub and experiments[0].has_format:
        sys.stdout.flush()
        if not upload(experiments[0].artifact, options.push_to_hub):
            return 1
    return 3 if rejections else 0


def upload(artifact: Path, name: str) -> bool:
    """Upload a finished model; returns whether this worked, and says so."""
    log.info("upload %s", artifact)
    try:
        address = upload_model(artifact, name)
    except UserError as error:
        error.print_to_stderr("main.py")
        return False
    log.info("uploaded to %s, a private repository", address)
    return True


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command("main.py", run_pipelines, argv)


if __name__ == "__main__":
    sys.exit(main())
