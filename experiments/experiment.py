"""One run: its directories, its repeats, and the results that it writes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from compression_config import PIPELINES, PLACE_OPTIONS, Options, as_record
from corpus.audit import audit_corpus, audit_lines, audit_table, token_sample
from corpus.columns import LabeledCorpus
from data import drop_unusable_rows, label_array, split_corpus
from encoders.start import start_tokenizer
from engines.engine import ModelFormat, serving_files
from experiments.checks import check_runs, distilling_run, resolve_defaults, with_default_student
from experiments.stages import StageRunner
from experiments.timing import add_empty_times, add_times
from metrics import interval_of_mean
from reporting import results
from reporting.model_card import write_card
from reporting.run_page import write_page
from runtime.archives import archive_path, write_archive
from runtime.artifacts import (
    atomic_directory,
    delete_partials,
    exclusive_lock,
    library_versions,
    record_reports,
    rows_hash,
    source_hash,
    write_record,
)
from runtime.command_line import (
    MAX_DEFAULT_NAME_BYTES,
    command_line,
    config_text,
    read_config_file,
    read_yaml,
)
from runtime.distributed import broadcast_from_main, is_main_process, join_processes
from runtime.errors import UserError, escape_unprintable
from runtime.files import atomic_write, delete, file_sha256, json_digest, link_or_copy, read_state
from runtime.logs import RunLog
from runtime.machine import machine_description
from runtime.worker import measuring_process
from task import Task

log = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_STEM_BYTES = MAX_DEFAULT_NAME_BYTES - 30  # the pipeline and the digest are at most 22

METRICS_WITH_INTERVAL = {  # -> the lowest and the highest possible value
    "macro_f1": (0, 1),
    "accuracy": (0, 1),
    "delta_macro_f1": (-1, 1),
    "parent_delta_macro_f1": (-1, 1),
}


def reproducible_options(options: Options) -> dict[str, Any]:
    """The options that determine a run's results, without unset ones."""
    determining = {}
    for name, value in as_record(options).items():
        if name not in PLACE_OPTIONS and value is not None:
            determining[name] = value
    return determining


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The options that differ, in words."""
    differing = []
    for name in before | now:
        if before.get(name) != now.get(name):
            differing.append(f"--{name} was {before.get(name)}, now {now.get(name)}")
    return ", ".join(differing)


def load_tokenizers(options: Options, corpus: LabeledCorpus) -> dict[str, Any]:
    """The tokenizers of the run; a scratch one is trained on a sample of the texts."""
    texts = token_sample(corpus)
    tokenizers = {
        "teacher": start_tokenizer(
            options.teacher_path, "--teacher_path", texts, options.max_length
        )
    }
    is_shared = (
        options.student_path.startswith("teacher:") or options.student_tokenizer == "teacher"
    )
    if "distill" in PIPELINES[options.pipeline] and not is_shared:
        tokenizers["student"] = start_tokenizer(
            options.student_path, "--student_path", texts, options.max_length
        )
    return tokenizers


def with_drift_sides(splits: DatasetDict, drifts: list[dict[str, Any]]) -> DatasetDict:
    """The splits; `rows` in test tells whether a row is before or after the largest label drift."""
    if not drifts:
        return splits
    last_row = drifts[0]["last_row"]
    sides = []
    for row in splits["test"]["id"]:
        sides.append(f"1-{last_row}" if row < last_row else f"{last_row + 1}-")
    return DatasetDict(splits | {"test": splits["test"].add_column("rows", sides)})


def mean_row(rows: list[Row], test_share: float) -> Row:
    """The mean of one stage's rows over all repeats.

    Metrics with an interval also get the standard deviation (`_sd`) and, in place of the
    bootstrap's, the interval over repeats (`_low`, `_high`), which is None for too few repeats.
    """
    mean = rows[0] | {"repeat": "mean"}
    for name, value in rows[0].items():
        values = [row.get(name) for row in rows]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and None not in values:
            mean[name] = sum(values) / len(values)
    for name, bounds in METRICS_WITH_INTERVAL.items():
        if name not in rows[0]:
            continue  # only formats have a full-precision parent
        values = [row[name] for row in rows]
        average, deviation, low, high = interval_of_mean(values, test_share, bounds)
        mean |= {name: average, f"{name}_sd": deviation, f"{name}_low": low, f"{name}_high": high}
    return mean


def mean_rows(rows: list[Row], test_share: float) -> list[Row]:
    """One mean row per stage; `test_share` is test rows / training rows."""
    means = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        means.append(mean_row([row for row in rows if row["stage"] == stage], test_share))
    return means


def repeats_of(options: Options) -> list[tuple[str, Options, int | None]]:
    """(name, options, fold) of each repeat: the folds, the seeds, or the single run."""
    if options.num_folds:
        return [(f"fold {fold + 1}", options, fold) for fold in range(options.num_folds)]
    if options.seeds:
        return [(f"seed {seed}", replace(options, seed=seed), None) for seed in options.seeds]
    return [("", options, None)]


@contextmanager
def open_experiments(
    runs: list[Options], corpus: LabeledCorpus, run_log: RunLog
) -> Iterator[list[Experiment]]:
    """Check everything, split the data, and yield one experiment per run.

    The runs differ only in their pipelines. The measuring process ends with the block. An audit
    has neither that process nor directories.
    """
    commands = [command_line(run) for run in runs]
    with ExitStack() as stack:
        runs = with_default_student(runs)
        check_runs(runs, corpus.task)
        columns = {"text_column": corpus.text_column, "label_columns": corpus.label_columns}
        runs = [resolve_defaults(run, columns) for run in runs]
        join_processes(runs[0].device)
        experiments = build_experiments(corpus, runs, commands)
        if runs[0].audit:  # it writes nothing
            yield experiments
            return

        def lock_directories() -> None:
            for experiment in experiments:
                stack.enter_context(exclusive_lock(experiment.directory))

        broadcast_from_main(lock_directories)
        call = stack.enter_context(measuring_process())
        runners = [runner for experiment in experiments for runner in experiment.runners]
        for runner in runners:
            runner.call = call
        broadcast_from_main(lambda: open_directories(experiments, run_log))
        yield experiments
        if is_main_process():
            for runner in runners:
                delete_partials(runner.directory)


def build_experiments(
    corpus: LabeledCorpus, runs: list[Options], commands: list[str]
) -> list[Experiment]:
    """One experiment per run; the file is split and audited once."""
    usable = drop_unusable_rows(corpus)
    splits = [split_corpus(usable, options, fold) for _, options, fold in repeats_of(runs[0])]
    tokenizers = load_tokenizers(distilling_run(runs), corpus)
    findings = audit_corpus(corpus, splits[0], tokenizers, runs[0].max_length)
    splits = [with_drift_sides(split, findings["order_drift"]) for split in splits]
    experiments = []
    for options, command in zip(runs, commands, strict=True):
        experiments.append(Experiment(options, corpus, splits, findings, command))
    return experiments


def open_directories(experiments: list[Experiment], run_log: RunLog) -> None:
    """Open the directories of all experiments, and append the log to each."""
    for experiment in experiments:
        experiment.open()
    run_log.write_to(*(experiment.log_path for experiment in experiments))
    for experiment in experiments:
        log.info(
            "experiment %s, log in %s: %s",
            experiment.options.experiment,
            experiment.log_path,
            experiment.command,
        )
    experiments[0].log_audit()


def finish_experiments(experiments: list[Experiment]) -> list[list[Row]]:
    """The rows of each experiment, timed in one benchmark; writes every final model and logs
    warnings.

    Only the first repeat is timed: the others have the same shapes, or nearly the same if a
    vocabulary was trimmed to other texts.
    """
    runners = [experiment.runners[0] for experiment in experiments]
    if experiments[0].options.no_benchmark:
        add_empty_times(runners)
    else:
        add_times(runners)
    rows = [experiment.results() for experiment in experiments]
    warnings = [results.warnings_of(experiment_rows) for experiment_rows in rows]
    for line in prefix_pipelines(experiments, warnings):
        log.warning("note: %s", line)
    for experiment, experiment_rows in zip(experiments, rows, strict=True):
        experiment.write_artifact(experiment_rows)
    return rows


def prefix_pipelines(experiments: list[Experiment], lines: list[list[str]]) -> list[str]:
    """The lines of all experiments, prefixed with their pipelines if there are several."""
    prefixed = []
    for experiment, own_lines in zip(experiments, lines, strict=True):
        prefix = f"{experiment.options.pipeline}: " if len(experiments) > 1 else ""
        prefixed += [f"{prefix}{line}" for line in own_lines]
    return prefixed


def safe_stem(path: str) -> str:
    """A file's name without suffixes and without characters that are special in a shell, cut to
    MAX_STEM_BYTES."""
    stem = Path(path).name.split(".")[0]
    safe = []
    for char in stem:
        is_safe = char.isalnum() or char == "-" or (char > "\x7f" and not char.isspace())
        safe.append(char if is_safe else "_")
    return os.fsencode("".join(safe))[:MAX_STEM_BYTES].decode(errors="ignore")


def link_formats(formats: list[ModelFormat], target: Path) -> None:
    """Hard-link the files that serve the formats into one directory.

    Graphs come first: their tokenizer is written without blanks. The config of a PyTorch format
    replaces theirs, because it may describe a quantization.
    """
    for model_format in sorted(formats, key=lambda one: one.engine == "torch"):
        for file in serving_files(model_format.directory, model_format.format_name):
            place = target / file.relative_to(model_format.directory)
            if place.name == "config.json":
                place.unlink(missing_ok=True)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, place)


def label_counts(split: Dataset, task: Task) -> dict[str, int]:
    """Label -> number of rows of a split with it."""
    labels = label_array(split)
    if task.multi_label:
        counts = labels.sum(axis=0)
    else:
        counts = np.bincount(labels, minlength=len(task.labels))
    return {name: int(count) for name, count in zip(task.labels, counts, strict=True)}


def label_examples(split: Dataset, task: Task) -> dict[str, str]:
    """Label -> the first text of a split that has it; labels without rows are absent."""
    labels = label_array(split)
    examples = {}
    for position, label in enumerate(task.labels):
        has_label = labels[:, position] == 1 if task.multi_label else labels == position
        rows = np.flatnonzero(has_label)
        if len(rows):
            examples[label] = split[int(rows[0])]["text"]
    return examples


class Experiment:
    """The directories `models/<name>/` and `compressed_models/<name>/`, with a stage runner per
    repeat."""

    def __init__(
        self,
        options: Options,
        corpus: LabeledCorpus,
        splits: list[DatasetDict],
        findings: dict[str, Any],
        command: str,
    ):
        self.corpus = corpus
        self.task = corpus.task
        self.audit = findings
        self.command = command
        name = options.experiment or default_name(options, splits, self.task)
        self.options = replace(options, experiment=name)
        models = Path(options.output_dir) / "models"
        self.directory = models / name
        self.log_path = self.directory / "run.log"
        self.artifact = Path(options.output_dir) / "compressed_models" / name
        self.runners = []
        for (repeat, repeat_options, _), rows in zip(repeats_of(options), splits, strict=True):
            directory = self.directory / repeat.replace(" ", "_")
            self.runners.append(
                StageRunner(repeat, directory, models, repeat_options, rows, self.task)
            )

    def open(self) -> None:
        """Write the options, the audit and the splits; UserError if the directory has other
        options."""
        config = self.directory / "config.yaml"
        now = reproducible_options(self.options)
        if not self.options.overwrite and read_state(config, read_yaml) is not None:
            self.check_same_options(config, now)
        for runner in self.runners:
            runner.write_splits()
        for path, content in (
            (config, config_text(now)),
            (self.directory / "audit.json", json.dumps(self.audit, indent=1, ensure_ascii=False)),
        ):
            if path.is_dir():
                delete(path)
            atomic_write(path, content)

    def check_same_options(self, config: Path, now: dict[str, Any]) -> None:
        """UserError if the run that wrote `config` had other options.

        A file that has only the beginning of what this run writes was cut, by a full disk or a
        power cut.
        """
        if config_text(now).startswith(config.read_text(encoding="utf-8")):
            return
        try:
            # options that were added since the file was written have their defaults
            before = reproducible_options(Options()) | read_config_file(config)
            differing = differences(before, now)
        except UserError as error:
            differing = "; ".join(error.lines)
        if differing:
            raise UserError(
                f"--experiment {self.options.experiment} already exists with other options "
                f"({differing}); give another name, or --overwrite"
            )

    def log_audit(self) -> None:
        """Log what was read and found."""
        log.info(
            "%s: text %r, labels %s: %s\n%s",
            self.options.dataset_path,
            self.corpus.text_column,
            ", ".join(map(repr, self.corpus.label_columns)),
            escape_unprintable("/".join(self.task.labels)),
            audit_table(self.audit),
        )

    def run(self) -> None:
        """Every stage of every repeat."""
        log.info("experiment %s", self.options.experiment)
        for runner in self.runners:
            runner.run()

    def results(self) -> list[Row]:
        """All rows, the linear baseline first, with ratios and the mean of repeats."""
        rows = [row for runner in self.runners for row in runner.finished_rows()]
        if len(self.runners) > 1:
            splits = self.runners[0].splits
            rows += mean_rows(rows, len(splits["test"]) / len(splits["train"]))
        return rows

    @property
    def artifact_rows(self) -> list[Row]:
        """The rows of the repeat whose model becomes the artifact."""
        return list(self.runners[0].rows.values())

    @property
    def has_format(self) -> bool:
        """Whether the artifact contains a model: the quality gate did not reject every format."""
        return bool(self.runners[0].accepted_formats())

    def about(self) -> dict[str, Any]:
        """What results and model card contain besides options and rows."""
        first = self.runners[0]
        counts = {name: label_counts(split, self.task) for name, split in first.splits.items()}
        return {
            "experiment": self.options.experiment,
            "shipped": first.name or "the one run",
            "command": self.command,
            "labels": self.task.labels,
            "problem_type": self.task.problem_type,
            "split_rows": first.splits.num_rows,
            "label_rows": counts,
            "machine": machine_description(),
            "versions": library_versions(),
        }

    def write_artifact(self, rows: list[Row]) -> None:
        """Write the first repeat's final model and the results into `compressed_models/<name>/`."""
        first = self.runners[0]
        delete(archive_path(self.artifact))
        with atomic_directory(self.artifact, "new") as partial:
            formats = first.accepted_formats()
            link_formats(formats, partial)
            names = {model_format.name: model_format.format_name for model_format in formats}
            write_record(
                partial,
                stage="artifact",
                fingerprint=json_digest([self.options.experiment, "artifact"]),
                forms=names,
                text_column=self.options.text_column,
                label_columns=list(self.options.label_columns),
                label_names=list(self.options.label_names or ()),
                label_separator=self.options.label_separator,
            )
            self.write_reports(partial, rows, list(names))
            record_reports(partial)
        archive = write_archive(self.artifact)
        log.info(
            "the final model%s and its results are in %s; as an archive, %.2f MB, in %s",
            f" ({first.name})" if first.name else "",
            self.artifact,
            archive.stat().st_size / 1e6,
            archive.name,
        )

    def write_reports(self, directory: Path, rows: list[Row], accepted: list[str]) -> None:
        """Write results, page and model card of the artifact; `accepted` names the rows of its
        formats."""
        about = self.about()
        options = as_record(self.options)
        results.write_results(directory, rows, options, about)
        write_page(directory, audit_lines(self.audit), with_examples=not self.options.no_examples)
        first_repeat = results.rows_of_repeat(rows, self.runners[0].name)
        by_stage = {row["stage"]: row for row in first_repeat}
        examples = {}
        if not self.options.no_examples:
            examples = label_examples(self.runners[0].splits["test"], self.task)
        write_card(
            directory,
            [by_stage["linear"], by_stage["teacher"]],
            [by_stage[name] for name in accepted],
            results.warnings_of(first_repeat),
            options,
            about,
            examples,
        )


def default_name(options: Options, splits: list[DatasetDict], task: Task) -> str:
    """Pipeline, data set and six digits of a digest of everything that determines the run."""
    rows = [rows_hash(split) for split_set in splits for split in split_set.values()]
    files = [file_sha256(Path(options.unlabeled_path))] if options.unlabeled_path else []
    teacher = source_hash(options.teacher_path)
    digest = json_digest([reproducible_options(options), rows, task.labels, teacher, files])
    return f"{options.pipeline}_{safe_stem(options.dataset_path)}_{digest[:6]}"
