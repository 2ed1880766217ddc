"""One run: what it reads, what it refuses, its folders, its repeats, and the results it ships."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from benchmark import machine_description
from compression_config import PIPELINES, Options, UserError, as_record, command_line
from corpus.audit import audit_corpus, audit_table, token_sample
from corpus.audit import audit_lines as audit_lines
from corpus.columns import LabelledCorpus
from data import drop_unusable_rows, label_array, split_corpus
from encoders.start import start_tokenizer
from engines.engine import ModelFormat, serving_files
from experiments.checks import check_runs, distilling_run, resolve_defaults, with_default_student
from experiments.stages import StageRunner, add_times
from metrics import interval_of_mean
from reporting import results, run_page
from reporting.model_card import write_card
from runtime.artifacts import (
    archive_path,
    atomic_directory,
    exclusive_lock,
    library_versions,
    link_or_copy,
    remove_partials,
    rows_hash,
    source_hash,
    write_archive,
    write_record,
)
from runtime.command_line import read_config_file, write_config_file
from runtime.distributed import broadcast_from_main, is_main_process, join_processes
from runtime.files import file_sha256, json_digest, write_json
from runtime.logs import log_to_files
from runtime.worker import measuring_process
from task import Task

log = logging.getLogger(__name__)

HEADLINE = ("macro_f1", "accuracy", "delta_macro_f1")  # metrics with an interval


def reproducible(options: Options) -> dict[str, Any]:
    """The options that determine a run's result, set ones alone; not where it is put, nor what it says."""
    beside = {f.name for group in (Options, Options) for f in own_options(group)}
    return {
        name: value
        for name, value in as_record(options).items()
        if name not in beside and value is not None
    }


def differences(kept: dict[str, Any], ours: dict[str, Any]) -> str:
    """Options that differ, in words."""
    names = [name for name in {**kept, **ours} if kept.get(name) != ours.get(name)]
    return ", ".join(f"--{name} {kept.get(name)}, not {ours.get(name)}" for name in names)


def load_tokenizers(options: Options, labelled: LabelledCorpus) -> dict[str, Any]:
    """The tokenizers that the run will use, as far as they exist before it; a fresh one is learnt from a sample."""
    texts = token_sample(labelled)
    found = {
        "teacher": start_tokenizer(
            options.teacher_path, "--teacher_path", texts, options.max_length
        )
    }
    shared = options.student_path.startswith("teacher:") or options.student_tokenizer == "teacher"
    if "distill" in PIPELINES[options.pipeline] and not shared:
        found["student"] = start_tokenizer(
            options.student_path, "--student_path", texts, options.max_length
        )
    return found


def with_drift_sides(splits: DatasetDict, drifts: list[dict[str, Any]]) -> DatasetDict:
    """The splits, with a column `rows` in test that tells on which side of the widest drift a row stood."""
    if not drifts:
        return splits
    last = drifts[0]["last_row"]
    sides = [f"1-{last}" if row < last else f"{last + 1}-" for row in splits["test"]["id"]]
    return DatasetDict(splits | {"test": splits["test"].add_column("rows", sides)})


def mean_rows(rows: list[dict[str, Any]], test_share: float) -> list[dict[str, Any]]:
    """One row a stage, `repeat` = mean: means of all figures; for the headline metrics also the standard deviation
    (`_sd`) and, in place of the bootstrap's, the interval over repeats (`_low`, `_high`)."""
    means = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        same = [row for row in rows if row["stage"] == stage]
        mean = dict(same[0]) | {"repeat": "mean"}
        for name, value in same[0].items():
            numbers = [row.get(name) for row in same]
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and None not in numbers
            ):
                mean[name] = sum(numbers) / len(numbers)
        for name in HEADLINE:
            found = interval_of_mean([row[name] for row in same], test_share)
            mean |= dict(
                zip((name, f"{name}_sd", f"{name}_low", f"{name}_high"), found, strict=True)
            )
        means.append(mean)
    return means


def repeats_of(options: Options) -> list[tuple[str, Options, int | None]]:
    """(name, options, fold) of each repeat: the folds, the seeds, or the one run."""
    if options.num_folds:
        return [(f"fold {fold + 1}", options, fold) for fold in range(options.num_folds)]
    seeds = [(f"seed {seed}", replace(options, seed=seed), None) for seed in options.seeds or ()]
    return seeds or [("", options, None)]


@contextmanager
def open_experiments(runs: list[Options]) -> Iterator[list["Experiment"]]:
    """Check everything, read the data, and give an experiment for each run; they differ in their pipelines alone. The
    measuring process ends with the block."""
    commands = [command_line(one) for one in runs]
    with ExitStack() as stack:
        log_to = stack.enter_context(log_to_files())
        runs = with_default_student(runs)
        labelled = check_runs(runs)
        columns = {"text_column": labelled.text, "label_columns": labelled.label_columns}
        runs = [resolve_defaults(one, columns) for one in runs]
        join_processes(runs[0].device)
        experiments = experiments_of(labelled, runs, commands)
        chains = [chain for experiment in experiments for chain in experiment.chains]
        broadcast_from_main(
            lambda: [
                stack.enter_context(exclusive_lock(experiment.directory))
                for experiment in experiments
            ]
        )
        elsewhere = stack.enter_context(measuring_process())
        for chain in chains:
            chain.elsewhere = elsewhere
        broadcast_from_main(lambda: open_all(experiments, log_to))
        yield experiments
        for chain in chains if is_main_process() and not runs[0].audit else ():
            remove_partials(chain.directory)


def experiments_of(
    labelled: LabelledCorpus, runs: list[Options], commands: list[str]
) -> list["Experiment"]:
    """An experiment for each run; the file is split and audited once."""
    kept = drop_unusable_rows(labelled)
    splits = [split_corpus(kept, one, fold) for _, one, fold in repeats_of(runs[0])]
    found = audit_corpus(
        labelled, splits[0], load_tokenizers(distilling_run(runs), labelled), runs[0].max_length
    )
    splits = [with_drift_sides(one, found["order_drift"]) for one in splits]
    return [
        Experiment(one, labelled, splits, found, command)
        for one, command in zip(runs, commands, strict=True)
    ]


def open_all(experiments: list["Experiment"], log_to: Callable[..., None]) -> None:
    """Open the folders of all experiments; the log goes into each."""
    for experiment in experiments:
        experiment.open()
    log_to(*(experiment.log_path for experiment in experiments))
    for experiment in experiments:
        log.info(
            "experiment %s, logged in %s: %s",
            experiment.options.experiment,
            experiment.log_path,
            experiment.command,
        )
    experiments[0].tell_audit()


def finish_experiments(experiments: list["Experiment"]) -> list[list[dict[str, Any]]]:
    """The rows of each experiment, all timed in one benchmark; ships every final model, and says in words what must
    not be missed. Times are those of the first repeat: the others have the same shapes, or nearly (where a vocabulary
    is trimmed to other texts)."""
    add_times([experiment.chains[0] for experiment in experiments])
    results = [experiment.results() for experiment in experiments]
    for line in prefix_pipelines(experiments, [results.warnings_of(rows) for rows in results]):
        log.warning("note: %s", line)
    for experiment, rows in zip(experiments, results, strict=True):
        experiment.ship(rows)
    return results


def prefix_pipelines(experiments: list["Experiment"], lines: list[list[str]]) -> list[str]:
    """The lines of all experiments, each with its pipeline where there are several."""
    return [
        f"{one.options.pipeline}: {line}" if len(experiments) > 1 else line
        for one, own in zip(experiments, lines, strict=True)
        for line in own
    ]


def safe_stem(path: str) -> str:
    """A file's name without its suffixes and without what means something to a shell."""
    stem = Path(path).name.split(".")[0]
    return "".join(
        c if c.isalnum() or c == "-" or c > "\x7f" and not c.isspace() else "_" for c in stem
    )


def link_formats(forms: list[ModelFormat], target: Path) -> None:
    """Hard-link what serving the forms needs into one folder, with the graphs' tokenizer, which is written without
    blanks, and the config of the torch form, which may say how it is quantized."""
    for form in sorted(forms, key=lambda form: form.engine == "torch"):
        for file in serving_files(form.path, form.served):
            place = target / file.relative_to(form.path)
            if place.name == "config.json":
                place.unlink(missing_ok=True)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, place)


def label_counts(split: Dataset, task: Task) -> dict[str, int]:
    """Label -> how many rows of a split have it."""
    labels = label_array(split)
    counts = (
        labels.sum(axis=0) if task.multi_label else np.bincount(labels, minlength=len(task.labels))
    )
    return {name: int(count) for name, count in zip(task.labels, counts, strict=True)}


class Experiment:
    """The folders `models/<name>/` and `compressed_models/<name>/`, and a chain of stages for every repeat."""

    def __init__(
        self,
        options: Options,
        labelled: LabelledCorpus,
        splits: list[DatasetDict],
        found: dict[str, Any],
        command: str,
    ):
        self.labelled, self.task, self.audit, self.command = labelled, labelled.task, found, command
        self.options = replace(
            options, experiment=options.experiment or self.default_name(options, splits)
        )
        models = Path(options.output_dir) / "models"
        self.directory = models / self.options.experiment
        self.log_path = self.directory / "run.log"
        self.artifact = Path(options.output_dir) / "compressed_models" / self.options.experiment
        self.chains = [
            StageRunner(name, self.directory / name.replace(" ", "_"), models, one, rows, self.task)
            for (name, one, _), rows in zip(repeats_of(options), splits, strict=True)
        ]

    def default_name(self, options: Options, splits: list[DatasetDict]) -> str:
        """Pipeline, data set and six digits of what determines the run."""
        rows = [rows_hash(split) for one in splits for split in one.values()]
        files = [file_sha256(Path(path)) for path in (options.unlabeled_path,) if path]
        run = [
            reproducible(options),
            rows,
            self.task.labels,
            source_hash(options.teacher_path),
            files,
        ]
        return f"{options.pipeline}_{safe_stem(options.dataset_path)}_{json_digest(run)[:6]}"

    def open(self) -> None:
        """Keep the options, the audit and the rows of every split; refuse a folder that holds other options."""
        kept, ours = self.directory / "config.yaml", reproducible(self.options)
        unset = reproducible(Options())  # what a file of an earlier version lacks
        differing = differences(unset | read_config_file(kept), ours) if kept.is_file() else ""
        if differing and not self.options.overwrite:
            raise UserError(
                f"--experiment {self.options.experiment} holds a run with other options ({differing}); "
                "give another name, or --overwrite"
            )
        for chain in self.chains:
            chain.write_splits()
        write_config_file(kept, ours)
        write_json(self.directory / "audit.json", self.audit)

    def tell_audit(self) -> None:
        """Log what was read and found, unless it is what the run prints."""
        if not self.options.audit:
            log.info(
                "%s: text %r, labels %s: %s\n%s",
                self.options.dataset_path,
                self.labelled.text,
                ", ".join(map(repr, self.labelled.label_columns)),
                "/".join(self.task.labels),
                audit_table(self.audit),
            )

    def run(self) -> None:
        """Every stage of every repeat."""
        log.info("experiment %s", self.options.experiment)
        for chain in self.chains:
            chain.run()

    def results(self) -> list[dict[str, Any]]:
        """All rows, the linear reference first, with ratios and the mean of repeats."""
        rows = [row for chain in self.chains for row in chain.finished_rows()]
        if len(self.chains) > 1:
            splits = self.chains[0].splits
            rows += mean_rows(rows, len(splits["test"]) / len(splits["train"]))
        return rows

    @property
    def shipped_rows(self) -> list[dict[str, Any]]:
        """The rows of the repeat whose models are shipped."""
        return list(self.chains[0].rows.values())

    def about(self) -> dict[str, Any]:
        """What results and card tell beside options and rows."""
        first = self.chains[0]
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

    def ship(self, rows: list[dict[str, Any]]) -> None:
        """Put the first repeat's final model and the results into `compressed_models/<name>/`."""
        first = self.chains[0]
        archive_path(self.artifact).unlink(missing_ok=True)
        with atomic_directory(self.artifact, "new") as partial:
            forms = first.shipped()
            link_formats(forms, partial)
            shipped = {form.name: form.served for form in forms}
            write_record(
                partial,
                stage="artifact",
                fingerprint=json_digest([self.options.experiment, "artifact"]),
                forms=shipped,
                text_column=self.options.text_column,
            )
            about, options = self.about(), as_record(self.options)
            results.write_results(partial, rows, options, about)
            run_page.write_page(
                partial, audit_lines(self.audit), with_examples=not self.options.no_examples
            )
            of_first = {row["stage"]: row for row in results.rows_of_repeat(rows, first.name)}
            references = [of_first[name] for name in ("linear", "teacher")]
            write_card(
                partial,
                references,
                [of_first[name] for name in shipped],
                results.warnings_of(list(of_first.values())),
                options,
                about,
            )
        bundle = write_archive(self.artifact)
        which = f" ({first.name})" if first.name else ""
        log.info(
            "the final model%s and its results are in %s; packed, %.2f MB, in %s",
            which,
            self.artifact,
            bundle.stat().st_size / 1e6,
            bundle.name,
        )
