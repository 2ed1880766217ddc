"""Runs the plan of one repeat: each stage is made, or reused from a cache, and its formats are
evaluated.

A row of the results is complete in two steps: quality and bytes after each stage, from a process
that did not make the model; times from one interleaved benchmark at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets

from compression_config import COMPUTE_OPTIONS, Options, StageOptions, as_record, select
from corpus.columns import read_options
from corpus.unlabeled import write_unlabeled
from distillation import with_teacher_logits, write_teacher_outputs
from engines.engine import ModelFormat
from evaluation import difference_from_parent
from experiments.evaluation_cache import EvaluationCache
from experiments.plan import TRAIN_AND_VALIDATION, Role, Rows, Step, final_rows, plan
from runtime.artifacts import (
    find_finished,
    link_finished,
    measure_cost,
    publish_if_finished,
    read_record,
    rows_hash,
    source_hash,
    write_record,
    write_together,
)
from runtime.distributed import (
    broadcast_from_main,
    is_main_process,
    process_count,
    wait_for_everyone,
)
from runtime.errors import escape_unprintable
from runtime.files import delete, json_digest, make_directory
from task import Task
from trainer import reporting

log = logging.getLogger(__name__)

UNLABELED = "unlabeled.arrow"
CURVES = "curves"  # the directory of --report_to tensorboard
OUTPUTS_VERSION = 1  # increases when the code of the teacher's outputs changes their values


def check_zeros_kept(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    """Raise RuntimeError if a format made from a pruned model has fewer zeros than that model."""
    pruned_sparsity = rows["pruned"]["sparsity"] if "pruned" in rows else 0.0
    if row["sparsity"] < pruned_sparsity - 1e-6:
        raise RuntimeError(
            f"{row['stage']} has fewer zeros than the pruned model: its sparsity is "
            f"{row['sparsity']:.6f}, the pruned model's {pruned_sparsity:.6f}"
        )


def gate_result(row: dict[str, Any], parent: dict[str, Any], limit: float) -> dict[str, Any]:
    """The loss of validation macro-F1 of a format against its parent, and whether the gate
    accepts it."""
    drop = parent["validation_macro_f1"] - row["validation_macro_f1"]
    return {"validation_drop": drop, "shipped": drop <= limit + 1e-9}


class StageRunner:
    """The stages of one repeat in `directory`, with the rows and formats made so far.

    `name` distinguishes repeats; `models` is the directory of all experiments, which is searched
    for finished stages. `call` runs a function in the measuring process; it is set before `run`.
    """

    call: Callable[..., Any]

    def __init__(
        self,
        name: str,
        directory: Path,
        models: Path,
        options: Options,
        splits: DatasetDict,
        task: Task,
    ):
        self.name = name
        self.directory = directory
        self.models = models
        self.options = options
        self.splits = splits
        self.task = task
        self.plan = plan(options)
        self.rows: dict[str, dict[str, Any]] = {}
        self.formats: list[ModelFormat] = []
        self.built_rows: dict[Rows, DatasetDict] = {}
        self.digests = {name: rows_hash(splits[name]) for name in TRAIN_AND_VALIDATION}

    def run(self) -> None:
        """Every step of the plan."""
        if self.name:
            sizes = [f"{count} {name}" for name, count in self.splits.num_rows.items()]
            log.info("%s: %s", self.name, ", ".join(sizes))
        for step in self.plan:
            self.run_step(step)

    def run_step(self, step: Step) -> Path:
        """Make the step's directory or reuse a finished one, then add its rows; returns the
        directory."""
        target = self.directory / step.stage.name
        fingerprint = self.fingerprint(step)
        record = {"options": as_record(step.options)}
        if step.student_start:
            record["start"] = str(self.directory / step.student_start)

        is_cached = self.make_or_reuse(
            step.stage.name,
            step.description,
            target,
            fingerprint,
            parent=self.model_in(step),
            make=partial(self.execute, step, fingerprint),
            record=record,
        )
        if is_main_process():
            self.add_rows(step, target, is_cached=is_cached)
        return target

    def model_in(self, step: Step) -> Path | str:
        """What a step starts from: a stage's directory, --teacher_path, or nothing ("")."""
        if step.start:
            return self.directory / step.start
        return self.options.teacher_path if step.stage.role is Role.TEACHER else ""

    def execute(self, step: Step, fingerprint: str, out_dir: Path) -> dict[str, float]:
        """Call the stage's function and return its cost. Only stages that are trained run in every
        process."""
        rows = self.rows_for(step.stage.rows)
        splits = DatasetDict({name: rows[name] for name in step.splits})
        options = StageOptions(**vars(step.options))
        if step.student_start:
            options.student_path = str(self.directory / step.student_start)
        run_name = f"{self.directory.relative_to(self.models)}/{step.stage.name}"
        curves = self.directory / CURVES / f"{step.stage.name}.{fingerprint}"
        with measure_cost() as cost, reporting(self.options.report_to, run_name, curves):
            if step.stage.is_trained or is_main_process():
                step.stage.make(self.model_in(step), splits, self.task, out_dir, options)
        return cost

    def make_or_reuse(
        self,
        name: str,
        description: str,
        target: Path,
        fingerprint: str,
        *,
        parent: Path | str,
        make: Callable[[Path], dict[str, float]],
        record: dict[str, Any],
    ) -> bool:
        """Make or reuse the finished directory `target`; returns whether it was reused.

        `make` writes into the directory that it is given, and returns what that cost.
        """
        finished = broadcast_from_main(partial(self.find_or_copy, target, fingerprint))
        if finished is None:
            log.info("stage %s: %s (from %s)", name, description, parent or "the training split")
            log.debug("stage %s: no finished directory has the fingerprint %s", name, fingerprint)
            with write_together(target, fingerprint) as out_dir:
                cost = make(out_dir)
                wait_for_everyone()
                if is_main_process():
                    entries = {"stage": name, "fingerprint": fingerprint, "parent": str(parent)}
                    write_record(out_dir, **entries, **record, **cost)
            return False
        log.info("stage %s: reused from %s: %s", name, finished, description)
        return True

    def find_or_copy(self, target: Path, fingerprint: str) -> Path | None:
        """The finished directory with this fingerprint that is now in `target`: it was there, or
        in another experiment; None if there is none.

        A directory that a run had finished when it was killed is published first.
        """
        publish_if_finished(target, fingerprint)
        directories = [target, self.models]
        if self.options.reuse:
            directories.append(Path(self.options.reuse))
        finished = find_finished(directories, fingerprint)
        if finished in (None, target) or link_finished(finished, target, fingerprint):
            return finished
        return None

    def fingerprint(self, step: Step) -> str:
        """A digest of everything that determines the step's result."""
        stage = step.stage
        sources = []
        if step.start:
            sources.append(self.fingerprint_of(step.start))
        else:
            sources.append(source_hash(str(self.model_in(step))))
        if "student_path" in stage.options:
            sources.append(source_hash(self.options.student_path))
        if step.student_start:
            sources.append(self.fingerprint_of(step.student_start))
        if stage.rows is not Rows.LABELED:
            sources.append(self.unlabeled_digest)
        processes = process_count() if stage.is_trained else 1
        options = as_record(step.options)
        rows = [[name, self.digests[name]] for name in step.splits]
        return json_digest(
            [stage.name, stage.version, options, processes, sources, rows, self.task.labels]
        )

    def fingerprint_of(self, name: str) -> str:
        """The fingerprint of a finished stage of this run."""
        return read_record(self.directory / name)["fingerprint"]

    def write_splits(self) -> None:
        """Write the rows of every split with their ids, and the unlabeled texts."""
        directory = self.directory / "splits"
        make_directory(directory)
        for name, split in self.splits.items():
            path = directory / f"{name}.parquet"
            delete(path)
            pq.write_table(split.data.table, path)
        if self.has_unlabeled:
            delete(directory / UNLABELED)
            write_unlabeled(
                self.options.unlabeled_path,
                self.options.text_column,
                self.splits,
                directory / UNLABELED,
                self.options.augment,
                self.options.seed,
                read_options(self.options),
            )

    @property
    def has_unlabeled(self) -> bool:
        """Whether there are texts that only the teacher labels."""
        return bool(self.options.unlabeled_path or self.options.augment)

    @cached_property
    def unlabeled(self) -> Dataset | None:
        """The unlabeled texts that `write_splits` wrote, on disk."""
        if not self.has_unlabeled:
            return None
        return Dataset.from_file(str(self.directory / "splits" / UNLABELED))

    @cached_property
    def unlabeled_digest(self) -> str:
        """A digest of the unlabeled texts; "" without any."""
        return rows_hash(self.unlabeled, ("id", "text")) if self.unlabeled else ""

    def rows_for(self, rows: Rows) -> DatasetDict:
        """The training and validation rows that a stage asks for."""
        builders = {
            Rows.LABELED: self.train_and_validation,
            Rows.TEXTS: self.text_rows,
            Rows.SOFT: self.soft_rows,
        }
        if rows not in self.built_rows:
            self.built_rows[rows] = builders[rows]()
        return self.built_rows[rows]

    def train_and_validation(self) -> DatasetDict:
        """Training and validation rows."""
        return DatasetDict(train=self.splits["train"], validation=self.splits["validation"])

    def text_rows(self) -> DatasetDict:
        """Training rows with the unlabeled texts, and validation rows; without groups."""
        columns = ["id", "text", "label"]
        train = self.splits["train"].select_columns(columns)
        if self.unlabeled:
            train = concatenate_datasets([train, self.unlabeled])
        return DatasetDict(
            train=train, validation=self.splits["validation"].select_columns(columns)
        )

    def soft_rows(self) -> DatasetDict:
        """Training rows with the unlabeled texts, and validation rows, with the teacher's
        logits."""
        train = self.with_outputs("train", self.splits["train"])
        validation = self.with_outputs("validation", self.splits["validation"])
        if self.unlabeled:
            unlabeled = self.with_outputs("unlabeled", self.unlabeled)
            train = concatenate_datasets([train, unlabeled])
        return DatasetDict(train=train, validation=validation)

    def with_outputs(self, name: str, rows: Dataset) -> Dataset:
        """The rows with the teacher's logits, which are computed once per teacher and texts."""
        teacher_dir = self.directory / "teacher"
        target = self.directory / "outputs" / name
        options = select(self.options, COMPUTE_OPTIONS)

        def run_teacher(out_dir: Path) -> dict[str, float]:
            with measure_cost() as cost:
                write_teacher_outputs(
                    teacher_dir,
                    rows,
                    out_dir,
                    max_length=options.max_length,
                    batch=options.batch,
                    device=options.device,
                )
            return cost

        source = [self.fingerprint_of("teacher"), rows_hash(rows, ("id", "text"))]
        fingerprint = json_digest(["outputs", OUTPUTS_VERSION, *source, options.max_length])
        self.make_or_reuse(
            f"outputs/{name}",
            f"run the teacher on {len(rows):,} texts",
            target,
            fingerprint,
            parent=teacher_dir,
            make=run_teacher,
            record={},
        )
        return with_teacher_logits(rows, target)

    def add_rows(self, step: Step, directory: Path, *, is_cached: bool) -> None:
        """Evaluate every format that the step wrote."""
        record = read_record(directory)
        for name, format_name in step.formats.items():
            model_format = ModelFormat(name, directory, format_name)
            row = {
                "stage": name,
                "engine": model_format.engine,
                "parent": step.compared_with,
                **self.evaluations.evaluate(model_format),
                "seconds": record["seconds"],
                "peak_memory_mb": record["peak_memory_mb"],
                "remembered": is_cached,
                "directory": str(directory),
            }
            check_zeros_kept(row, self.rows)
            log.info("%s: macro-F1 %.4f, %.2f MB", name, row["macro_f1"], row["size_mb"])
            if "never_predicted" in row and not step.is_retrained:
                log.warning(
                    "note: %s never predicts %s on the test split",
                    name,
                    escape_unprintable(row["never_predicted"]),
                )
            if step.stage.role is Role.FORMAT:
                row |= self.difference_from_parent(name, step.compared_with)
                if self.options.max_f1_drop is not None:
                    parent = self.rows[step.compared_with]
                    row |= gate_result(row, parent, self.options.max_f1_drop)
            self.formats.append(model_format)
            self.rows[name] = row

    def difference_from_parent(self, name: str, parent: str) -> dict[str, float]:
        """The difference of a format's macro-F1 from that of the row it was made from."""
        predictions = self.directory / "predictions"
        return difference_from_parent(
            predictions / f"{name}.parquet",
            predictions / f"{parent}.parquet",
            self.task,
            self.options.seed,
        )

    @cached_property
    def evaluations(self) -> EvaluationCache:
        """The evaluations of this repeat, and of others."""
        with_validation = self.options.max_f1_drop is not None
        test = self.splits["test"]
        digests = [rows_hash(test, test.column_names)]
        if with_validation:
            digests.append(self.digests["validation"])
        return EvaluationCache(
            self.directory,
            self.models,
            self.task,
            select(self.options, COMPUTE_OPTIONS),
            rows_digest=json_digest(digests),
            with_validation=with_validation,
            call=self.call,
        )

    def final_formats(self) -> list[ModelFormat]:
        """The formats that the run ends with."""
        names = final_rows(self.plan)
        return [model_format for model_format in self.formats if model_format.name in names]

    def accepted_formats(self) -> list[ModelFormat]:
        """The final formats without those that the quality gate rejects."""
        accepted = []
        for model_format in self.final_formats():
            if self.rows[model_format.name].get("shipped", True):
                accepted.append(model_format)
        return accepted

    def finished_rows(self) -> list[dict[str, Any]]:
        """The rows, the linear baseline first, with their compression ratios."""
        teacher = self.rows["teacher"]
        repeat = {"repeat": self.name} if self.name else {}
        names = ["linear", *(name for name in self.rows if name != "linear")]
        finished = []
        for name in names:
            row = self.rows[name]
            ratios = {
                "compression_ratio": teacher["bytes"] / row["bytes"],
                "packed_ratio": teacher["packed_bytes"] / row["packed_bytes"],
            }
            finished.append(row | repeat | ratios)
        return finished
