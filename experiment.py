"""One run: its folders, the stages it makes or remembers, and the rows it reports.

Rows are complete in two steps: quality and bytes after each stage, from a process that did not make the model;
times from one interleaved benchmark at the end.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import DatasetDict

import benchmark
import report
from artifacts import (
    digest,
    find_finished,
    link_tree,
    measured,
    read_record,
    rows_digest,
    source_digest,
    versions,
    whole_or_absent,
    write_record,
)
from compression_config import (
    PIPELINES,
    ComputeOptions,
    DataOptions,
    DistillOptions,
    Options,
    PruneOptions,
    QuantizeOptions,
    TeacherOptions,
    UserError,
    as_record,
    narrow,
)
from data import load_splits
from distillation import distill, teacher_outputs, with_teacher_logits
from encoders import Task, check_start, is_fresh, layer_count, teacher_layer_ids
from evaluation import Form, evaluate, fit_linear, fresh_process
from export import write_onnx
from pruning import prune
from quantization import ENGINES, check_requirements, quantize
from training import check_finished_teacher, resolve_device, resolve_precision, teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """How a stage is made, what it reads, the row it gives, and a version that grows when its code changes results."""

    make: Callable[..., Path]  # (model in, splits, task, out_dir, options) -> directory out
    options: type
    row: str
    version: int = 1
    needs_teacher_outputs: bool = False


STAGES = {
    "teacher": Stage(teacher, TeacherOptions, "teacher"),
    "distill": Stage(distill, DistillOptions, "student", needs_teacher_outputs=True),
    "prune": Stage(prune, PruneOptions, "pruned", needs_teacher_outputs=True),
    "quantize": Stage(quantize, QuantizeOptions, "quantized"),
}


def collect_errors(*checks: Callable[[], Any]) -> None:
    """Run every check, then raise one UserError with the lines of all that failed."""
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            lines += error.lines
    if lines:
        raise UserError(*lines)


def check_student(options: Options) -> None:
    """Refuse a student that cannot be built from this teacher."""
    check_start(options.student_path, "--student_path")
    if options.student_path.startswith("teacher:"):
        teacher_layer_ids(options.student_path, layer_count(options.teacher_path, "--teacher_path"))


def check_models(options: Options) -> None:
    """Refuse, all at once, what would fail after hours of training."""
    stages = PIPELINES[options.pipeline]
    checks = [lambda: check_start(options.teacher_path, "--teacher_path"),
              lambda: resolve_precision(options.precision, resolve_device(options.device))]  # fmt: skip
    if "distill" in stages:
        checks.append(lambda: check_student(options))
    if "quantize" in stages:
        checks.append(lambda: check_requirements(options.quant_method))
    collect_errors(*checks)


def resolve(options: Options, columns: dict[str, Any]) -> Options:
    """Every `auto` and every unset default replaced by what it stands for."""
    device = resolve_device(options.device)
    student_is_fresh = is_fresh(options.student_path) or (
        is_fresh(options.teacher_path) and options.student_path.startswith("teacher:"))  # fmt: skip
    learner_is_fresh = student_is_fresh if "distill" in PIPELINES[options.pipeline] else is_fresh(options.teacher_path)
    return replace(
        options, **columns, device=device, precision=resolve_precision(options.precision, device),
        teacher_lr=options.teacher_lr or (5e-4 if is_fresh(options.teacher_path) else 5e-5),
        lr=options.lr or (5e-4 if learner_is_fresh else 5e-5),
    )  # fmt: skip


@contextmanager
def open_experiment(options: Options) -> Iterator["Experiment"]:
    """Check everything, read the data, and give the experiment; its measuring process ends with the block."""
    if options.student_path is None:
        options = replace(options, student_path="teacher:2")
    elif "distill" not in PIPELINES[options.pipeline]:
        log.warning("--student_path %s is not used: %s has no distillation", options.student_path, options.pipeline)
    check_models(options)
    splits, task, columns = load_splits(narrow(options, DataOptions))
    if options.teacher_epochs == 0:
        check_finished_teacher(options.teacher_path, task)
    with fresh_process() as elsewhere:
        yield Experiment(resolve(options, columns), splits, task, elsewhere)


class Experiment:
    """The folders `models/<name>/` and `compressed_models/<name>/`, and what has been made in them so far."""

    def __init__(self, options: Options, splits: DatasetDict, task: Task, elsewhere: Callable[..., Any]):
        self.options, self.splits, self.task, self.elsewhere = options, splits, task, elsewhere
        self.data_digest = digest([rows_digest(splits["train"]), rows_digest(splits["validation"]), task.labels])
        self.models = Path(options.output_dir) / "models"
        self.name = options.experiment or self.default_name()
        self.directory = self.models / self.name
        self.forms: list[Form] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.parent_row = ""
        self.write_splits()

    def default_name(self) -> str:
        """Pipeline, data set and six digits of what determines the run."""
        record = as_record(replace(self.options, experiment=None, output_dir=""))
        source = source_digest(self.options.teacher_path)
        run = digest([record, self.data_digest, rows_digest(self.splits["test"]), source])
        return f"{self.options.pipeline}_{Path(self.options.dataset_path).stem}_{run[:6]}"

    def write_splits(self) -> None:
        """Keep the rows of every split, for evaluation and for the reader."""
        (self.directory / "splits").mkdir(parents=True, exist_ok=True)
        for name, split in self.splits.items():
            split.to_parquet(self.directory / "splits" / f"{name}.parquet")

    @cached_property
    def soft_splits(self) -> DatasetDict:
        """The splits with the teacher's logits; the teacher runs once, when the first stage needs them."""
        outputs = teacher_outputs(self.directory / "teacher", self.splits, narrow(self.options, ComputeOptions))
        return with_teacher_logits(self.splits, outputs)

    def stage(self, name: str, model_in: Path | str) -> Path:
        """The directory that the stage makes of `model_in`, or the remembered one; its rows are added."""
        stage, target = STAGES[name], self.directory / name
        options = narrow(self.options, stage.options)
        parent = read_record(model_in)["fingerprint"] if isinstance(model_in, Path) else source_digest(model_in)
        fingerprint = digest([name, stage.version, as_record(options), parent, self.data_digest])
        found = find_finished(self.models, fingerprint)
        if found:
            log.info("stage %s: remembered from %s", name, found)
            if found != target:
                with whole_or_absent(target, fingerprint) as partial:
                    partial.rmdir()
                    link_tree(found, partial)
        else:
            log.info("stage %s: %s", name, model_in)
            self.make(stage, model_in, target, options, fingerprint)
        self.add_rows(name, target, remembered=bool(found))
        return target

    def make(self, stage: Stage, model_in: Path | str, target: Path, options: Any, fingerprint: str) -> None:
        """Run the stage into `target`, whole or absent, with the record of how it was made."""
        with whole_or_absent(target, fingerprint) as partial:
            with measured() as cost:
                splits = self.soft_splits if stage.needs_teacher_outputs else self.splits
                stage.make(model_in, splits, self.task, partial, options)
            write_record(partial, stage=target.name, fingerprint=fingerprint, parent=str(model_in),
                         options=as_record(options), **cost)  # fmt: skip

    def add_rows(self, name: str, directory: Path, remembered: bool) -> None:
        """Evaluate every form that the stage wrote."""
        record, parent = read_record(directory), self.parent_row
        for engine in ENGINES[self.options.quant_method] if name == "quantize" else ("torch",):
            row_name = STAGES[name].row
            if name == "quantize":
                row_name = self.options.quant_method + ("-onnx" if engine == "onnx" else "")
            self.add_row(Form(row_name, directory, engine), parent, remembered, record)
        self.parent_row = self.forms[-1].name

    def add_row(self, form: Form, parent: str, remembered: bool, cost: dict[str, Any]) -> None:
        """Measure one form in the other process; agreement is with the teacher's decisions."""
        predictions = self.directory / "predictions"
        predictions.mkdir(exist_ok=True)
        out_path = predictions / f"{form.name}.parquet"
        row = self.elsewhere(
            evaluate, form, self.directory / "splits" / "test.parquet", self.task, self.options.max_length,
            self.options.batch, self.options.device, predictions / "teacher.parquet", out_path)  # fmt: skip
        self.forms.append(form)
        self.rows[form.name] = {"stage": form.name, "engine": form.engine, "parent": parent, **row,
                                "seconds": cost["seconds"], "peak_memory_mb": cost["peak_memory_mb"],
                                "remembered": remembered, "directory": str(form.path)}  # fmt: skip
        log.info("%s: macro-F1 %.4f, %.2f MB", form.name, row["macro_f1"], row["size_mb"])

    def linear_reference(self) -> None:
        """The row that a transformer must beat."""
        target = self.directory / "linear"
        with whole_or_absent(target, "linear") as partial, measured() as cost:
            fit_linear(self.splits, self.task, partial, self.options.seed)
        self.add_row(Form("linear", target, "linear"), "", False, cost)

    def results(self) -> list[dict[str, Any]]:
        """All rows, the linear reference first, with ratios and times; says in words what must not be missed."""
        self.add_times()
        teacher_bytes = self.rows["teacher"]["bytes"]
        ordered = [self.rows["linear"], *(row for name, row in self.rows.items() if name != "linear")]
        rows = [row | {"compression_ratio": teacher_bytes / row["bytes"]} for row in ordered]
        for line in report.verdicts(rows):
            log.warning("note: %s", line)
        return rows

    def add_times(self) -> None:
        """Time every form in turn; the fp32 teacher is timed in each engine that a row uses, as its baseline."""
        baselines, timed = {"torch": "teacher"}, list(self.forms)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="teacher-onnx.") as folder:
            if any(form.engine == "onnx" for form in self.forms):
                copy = Path(folder) / "teacher"
                link_tree(self.directory / "teacher", copy)
                (copy / "onnx").mkdir()
                write_onnx(copy, copy / "onnx" / "model.onnx")
                baselines["onnx"] = "teacher in onnx"
                timed.append(Form("teacher in onnx", copy, "onnx"))
            times = self.elsewhere(benchmark.measure, timed, list(self.splits["test"]["text"]),
                                   self.options.max_length, self.options.device, self.options.seed)  # fmt: skip
        benchmark.add_speedups(self.rows, times, baselines, {form.name: form.engine for form in self.forms})

    def ship(self, model: Path, rows: list[dict[str, Any]]) -> Path:
        """Put the final model and the results into `compressed_models/<name>/`."""
        target = Path(self.options.output_dir) / "compressed_models" / self.name
        with whole_or_absent(target, "new") as partial:
            partial.rmdir()
            link_tree(model, partial)
            about = {"experiment": self.name, "labels": self.task.labels, "problem_type": self.task.problem_type,
                     "split_rows": self.splits.num_rows, "versions": versions()}  # fmt: skip
            report.write_results(partial, rows, as_record(replace(self.options, experiment=self.name)), about)
        log.info("the final model and its results are in %s", target)
        return target
