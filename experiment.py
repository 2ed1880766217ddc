"""One run: its folders, the stages it makes or remembers, and the rows it reports.

Rows are complete in two steps: quality and bytes after each stage, from a process that did not make the model;
times from one interleaved benchmark at the end.
"""

import json
import logging
import shutil
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
    adopt,
    digest,
    drop_partial,
    find_finished,
    link_tree,
    measured,
    partial_of,
    read_record,
    rows_digest,
    sole_user,
    source_digest,
    versions,
    whole_or_absent,
    write_json,
    write_record,
)
from compression_config import (
    PIPELINES,
    ComputeOptions,
    DataOptions,
    DistillOptions,
    Options,
    PlaceOptions,
    PruneOptions,
    QuantizeOptions,
    SeedOptions,
    TeacherOptions,
    UserError,
    as_record,
    narrow,
    own_knobs,
    read_config_file,
    write_config_file,
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
    "quantize": Stage(quantize, QuantizeOptions, ""),
    "linear": Stage(fit_linear, SeedOptions, "linear"),
}
EVALUATION = 1  # grows when the code of evaluation changes what it finds


def forms_of(stage: str, quant_method: str) -> dict[str, str]:
    """Row name -> engine, for every form that a stage writes."""
    if stage == "quantize":
        return {quant_method + ("-onnx" if engine == "onnx" else ""): engine for engine in ENGINES[quant_method]}
    return {STAGES[stage].row: "linear" if stage == "linear" else "torch"}


def reproducible(options: Options) -> dict[str, Any]:
    """The options that determine a run's result, set ones alone; not where it is put."""
    where = {f.name for f in own_knobs(PlaceOptions)}
    return {name: value for name, value in as_record(options).items() if name not in where and value is not None}


def differences(kept: dict[str, Any], ours: dict[str, Any]) -> str:
    """Options that differ, in words."""
    names = [name for name in {**kept, **ours} if kept.get(name) != ours.get(name)]
    return ", ".join(f"--{name} {kept.get(name)}, not {ours.get(name)}" for name in names)


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
    check_start(options.student_path, "--student_path", options.max_length)
    if options.student_path.startswith("teacher:"):
        teacher_layer_ids(options.student_path, layer_count(options.teacher_path, "--teacher_path"))


def checked(options: Options) -> tuple[DatasetDict, Task, dict[str, Any]]:
    """The splits, the task and the columns found; refuses, all at once, what would fail after hours of training."""
    stages = PIPELINES[options.pipeline]
    checks = [lambda: check_start(options.teacher_path, "--teacher_path", options.max_length),
              lambda: resolve_precision(options.precision, resolve_device(options.device))]  # fmt: skip
    if "distill" in stages:
        checks.append(lambda: check_student(options))
    if "quantize" in stages:
        checks.append(lambda: check_requirements(options.quant_method))
    found: list[Any] = []
    checks.append(lambda: found.extend(load_splits(narrow(options, DataOptions))))
    collect_errors(*checks)
    splits, task, columns = found
    if options.teacher_epochs == 0:
        check_finished_teacher(options.teacher_path, task)
    return splits, task, columns


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
    splits, task, columns = checked(options)
    experiment = Experiment(resolve(options, columns), splits, task)
    with sole_user(experiment.directory), fresh_process() as experiment.elsewhere:
        experiment.open()
        yield experiment
        drop_partial(experiment.directory)


class Experiment:
    """The folders `models/<name>/` and `compressed_models/<name>/`, and what has been made in them so far."""

    elsewhere: Callable[..., Any]  # calls a function in the measuring process

    def __init__(self, options: Options, splits: DatasetDict, task: Task):
        self.splits, self.task = splits, task
        self.data_digest = digest([rows_digest(splits["train"]), rows_digest(splits["validation"]), task.labels])
        self.test_digest = rows_digest(splits["test"])
        self.options = replace(options, experiment=options.experiment or self.default_name(options))
        self.models = Path(options.output_dir) / "models"
        self.directory = self.models / self.options.experiment
        self.artifact = Path(options.output_dir) / "compressed_models" / self.options.experiment
        self.forms: list[Form] = []
        self.rows: dict[str, dict[str, Any]] = {}

    def default_name(self, options: Options) -> str:
        """Pipeline, data set and six digits of what determines the run."""
        run = [reproducible(options), self.data_digest, self.test_digest, source_digest(options.teacher_path)]
        return f"{options.pipeline}_{Path(options.dataset_path).stem}_{digest(run)[:6]}"

    def open(self) -> None:
        """Keep the options and the rows of every split; refuse a folder that holds other options."""
        kept, ours = self.directory / "config.yaml", reproducible(self.options)
        differing = differences(read_config_file(kept), ours) if kept.is_file() else ""
        if differing and not self.options.overwrite:
            raise UserError(f"--experiment {self.options.experiment} holds a run with other options ({differing}); "
                            "give another name, or --overwrite")  # fmt: skip
        write_config_file(kept, ours)
        (self.directory / "splits").mkdir(exist_ok=True)
        for name, split in self.splits.items():
            split.to_parquet(self.directory / "splits" / f"{name}.parquet")

    @cached_property
    def soft_splits(self) -> DatasetDict:
        """The splits with the teacher's logits; the teacher runs once, when the first stage needs them."""
        outputs = teacher_outputs(self.directory / "teacher", self.splits, narrow(self.options, ComputeOptions))
        return with_teacher_logits(self.splits, outputs)

    def fingerprint(self, name: str, model_in: Path | str) -> str:
        """What determines the stage's result: its options, its code's version, what it starts from, its rows."""
        stage = STAGES[name]
        sources = [read_record(model_in)["fingerprint"] if isinstance(model_in, Path) else source_digest(model_in)]
        if name == "distill":
            sources.append(source_digest(self.options.student_path))
        return digest([name, stage.version, as_record(narrow(self.options, stage.options)), sources, self.data_digest])

    def stage(self, name: str, model_in: Path | str) -> Path:
        """The directory that the stage makes of `model_in`, or the remembered one; its rows are added."""
        target, fingerprint = self.directory / name, self.fingerprint(name, model_in)
        adopt(target, fingerprint)
        folders = [target, self.models, *([Path(self.options.reuse)] if self.options.reuse else [])]
        found = find_finished(folders, fingerprint)
        if found is None:
            log.info("stage %s: from %s", name, model_in or "the training split")
            self.make(name, model_in, target, fingerprint)
        else:
            log.info("stage %s: remembered from %s", name, found)
            if found != target:
                with whole_or_absent(target, fingerprint) as partial:
                    link_tree(found, partial)
        self.add_rows(name, target, remembered=found is not None)
        return target

    def make(self, name: str, model_in: Path | str, target: Path, fingerprint: str) -> None:
        """Run the stage into `target`, whole or absent, with the record of how it was made."""
        stage, options = STAGES[name], narrow(self.options, STAGES[name].options)
        with whole_or_absent(target, fingerprint) as partial:
            with measured() as cost:
                splits = self.soft_splits if stage.needs_teacher_outputs else self.splits
                stage.make(model_in, splits, self.task, partial, options)
            write_record(partial, stage=name, fingerprint=fingerprint, parent=str(model_in),
                         options=as_record(options), **cost)  # fmt: skip

    def add_rows(self, name: str, directory: Path, remembered: bool) -> None:
        """Evaluate every form that the stage wrote."""
        record, parent = read_record(directory), self.parent_of(name)
        for row_name, engine in forms_of(name, self.options.quant_method).items():
            form = Form(row_name, directory, engine)
            row = {"stage": row_name, "engine": engine, "parent": parent, **self.evaluated(form, record)}
            row |= {"seconds": record["seconds"], "peak_memory_mb": record["peak_memory_mb"],
                    "remembered": remembered, "directory": str(directory)}  # fmt: skip
            log.info("%s: macro-F1 %.4f, %.2f MB", row_name, row["macro_f1"], row["size_mb"])
            self.forms.append(form)
            self.rows[row_name] = row

    def parent_of(self, name: str) -> str:
        """The row that a stage's rows are compared with: the last full-precision one before it."""
        before = [row for row in self.rows if row != "linear"]
        return before[-1] if before and name != "linear" else ""

    def evaluated(self, form: Form, record: dict[str, Any]) -> dict[str, Any]:
        """Quality and size of a form, measured in the other process unless an equal measurement is kept."""
        predictions = self.directory / "predictions"
        predictions.mkdir(exist_ok=True)
        teacher_path, out_path = predictions / "teacher.parquet", predictions / f"{form.name}.parquet"
        kept, compute = predictions / f"{form.name}.json", narrow(self.options, ComputeOptions)
        teacher = read_record(self.directory / "teacher")["fingerprint"]
        key = digest([record["fingerprint"], teacher, self.test_digest, form.engine, as_record(compute), EVALUATION])
        if kept.is_file() and out_path.is_file() and (row := json.loads(kept.read_text()))["key"] == key:
            return row["metrics"]
        test = self.directory / "splits" / "test.parquet"
        metrics = self.elsewhere(evaluate, form, test, self.task, compute, teacher_path, out_path)
        write_json(kept, {"key": key, "metrics": metrics})
        return metrics

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
        copy = partial_of(self.directory / "teacher", "onnx")
        if any(form.engine == "onnx" for form in self.forms):
            shutil.rmtree(copy, ignore_errors=True)
            link_tree(self.directory / "teacher", copy)
            (copy / "onnx").mkdir()
            write_onnx(copy, copy / "onnx" / "model.onnx")
            baselines["onnx"] = "teacher in onnx"
            timed.append(Form("teacher in onnx", copy, "onnx"))
        times = self.elsewhere(benchmark.measure, timed, self.splits["test"][:]["text"],
                               self.options.max_length, self.options.device, self.options.seed)  # fmt: skip
        benchmark.add_speedups(self.rows, times, baselines, {form.name: form.engine for form in self.forms})

    def ship(self, model: Path, rows: list[dict[str, Any]]) -> None:
        """Put the final model and the results into `compressed_models/<name>/`."""
        with whole_or_absent(self.artifact, "new") as partial:
            link_tree(model, partial)
            about = {"experiment": self.options.experiment, "labels": self.task.labels,
                     "problem_type": self.task.problem_type, "split_rows": self.splits.num_rows,
                     "versions": versions()}  # fmt: skip
            report.write_results(partial, rows, as_record(self.options), about)
        log.info("the final model and its results are in %s", self.artifact)
