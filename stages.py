"""The stages of one run on one split: each is made or remembered, and gives the rows of its forms.

Rows are complete in two steps: quality and bytes after each stage, from a process that did not make the model;
times from one interleaved benchmark at the end.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import DatasetDict

import benchmark
from artifacts import (
    adopt,
    digest,
    find_finished,
    link_tree,
    measured,
    partial_of,
    read_record,
    rows_digest,
    source_digest,
    whole_or_absent,
    write_json,
    write_record,
)
from compression_config import (
    PIPELINES,
    ComputeOptions,
    DistillOptions,
    Options,
    PruneOptions,
    QuantizeOptions,
    SeedOptions,
    TeacherOptions,
    as_record,
    narrow,
)
from distillation import distill, teacher_outputs, with_teacher_logits
from encoders import Task
from evaluation import Form, evaluate, fit_linear
from export import write_onnx
from pruning import prune
from quantization import ENGINES, quantize
from threshold import tune
from training import teacher

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
    "plain": Stage(distill, DistillOptions, "student_plain"),
    "prune": Stage(prune, PruneOptions, "pruned", needs_teacher_outputs=True),
    "tune": Stage(tune, ComputeOptions, "tuned"),
    "quantize": Stage(quantize, QuantizeOptions, ""),
    "linear": Stage(fit_linear, SeedOptions, "linear"),
}
REFERENCES = ("linear", "student_plain")  # rows that nothing is made from
EVALUATION = 2  # grows when the code of evaluation changes what it finds


def forms_of(stage: str, quant_method: str) -> dict[str, str]:
    """Row name -> engine, for every form that a stage writes."""
    if stage == "quantize":
        return {quant_method + ("-onnx" if engine == "onnx" else ""): engine for engine in ENGINES[quant_method]}
    return {STAGES[stage].row: "linear" if stage == "linear" else "torch"}


def stages_after_teacher(options: Options) -> list[str]:
    """The stages of the pipeline; thresholds are tuned on the last full-precision model."""
    names = list(PIPELINES[options.pipeline])
    if options.tune_threshold:
        names.insert(len(names) - ("quantize" in names), "tune")
    return names


class Chain:
    """The stages of one split in `directory`, and the rows and forms made so far. `name` tells repeats apart."""

    elsewhere: Callable[..., Any]  # calls a function in the measuring process

    def __init__(self, name: str, directory: Path, models: Path, options: Options, splits: DatasetDict, task: Task):
        self.name, self.directory, self.models = name, directory, models
        self.options, self.splits, self.task = options, splits, task
        self.data_digest = digest([rows_digest(splits["train"]), rows_digest(splits["validation"]), task.labels])
        self.test_digest = rows_digest(splits["test"], splits["test"].column_names)
        self.forms: list[Form] = []
        self.rows: dict[str, dict[str, Any]] = {}

    def write_splits(self) -> None:
        """Keep the rows of every split, with their ids."""
        (self.directory / "splits").mkdir(parents=True, exist_ok=True)
        for name, split in self.splits.items():
            pq.write_table(split.data.table, self.directory / "splits" / f"{name}.parquet")

    def run(self) -> None:
        """Every stage of the pipeline, each from the one before it."""
        if self.name:
            log.info("%s: %s", self.name, ", ".join(f"{rows} {name}" for name, rows in self.splits.num_rows.items()))
        model = teacher_dir = self.stage("teacher", self.options.teacher_path)
        self.stage("linear", "")
        if self.options.kd_baseline:
            self.stage("plain", teacher_dir)
        for name in stages_after_teacher(self.options):
            model = self.stage(name, model)
        self.model = model

    def stage_options(self, name: str) -> Any:
        """What the stage reads; the student without a teacher learns from hard labels alone."""
        options = replace(self.options, kd_alpha=0.0) if name == "plain" else self.options
        return narrow(options, STAGES[name].options)

    @cached_property
    def soft_splits(self) -> DatasetDict:
        """The splits with the teacher's logits; the teacher runs once, when the first stage needs them."""
        outputs = teacher_outputs(self.directory / "teacher", self.splits, narrow(self.options, ComputeOptions))
        return with_teacher_logits(self.splits, outputs)

    def fingerprint(self, name: str, model_in: Path | str) -> str:
        """What determines the stage's result: its options, its code's version, what it starts from, its rows."""
        stage = STAGES[name]
        sources = [read_record(model_in)["fingerprint"] if isinstance(model_in, Path) else source_digest(model_in)]
        if name in ("distill", "plain"):
            sources.append(source_digest(self.options.student_path))
        return digest([name, stage.version, as_record(self.stage_options(name)), sources, self.data_digest])

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
        stage, options = STAGES[name], self.stage_options(name)
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
            if "never_predicted" in row:
                log.warning("note: %s never predicts %s on the test split", row_name, row["never_predicted"])
            self.forms.append(form)
            self.rows[row_name] = row

    def parent_of(self, name: str) -> str:
        """The row that a stage's rows are compared with: the last full-precision one before it."""
        if STAGES[name].row in REFERENCES:
            return ""
        before = [row for row in self.rows if row not in REFERENCES]
        return before[-1] if before else ""

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

    def finished_rows(self) -> list[dict[str, Any]]:
        """The rows, the linear reference first, with their compression ratios."""
        teacher_bytes = self.rows["teacher"]["bytes"]
        ordered = [self.rows["linear"], *(row for name, row in self.rows.items() if name != "linear")]
        repeat = {"repeat": self.name} if self.name else {}
        return [row | repeat | {"compression_ratio": teacher_bytes / row["bytes"]} for row in ordered]

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
        times = benchmark.measure(timed, self.splits["test"][:]["text"], self.options.max_length, self.options.device,
                                  self.options.seed)  # fmt: skip
        benchmark.add_speedups(self.rows, times, baselines, {form.name: form.engine for form in self.forms})

