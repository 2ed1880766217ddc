"""The stages of one run on one split: each is made or remembered, and gives the rows of its forms.

Rows are complete in two steps: quality and bytes after each stage, from a process that did not make the model;
times from one interleaved benchmark at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets

import benchmark
import distillation
import pruning
from compression_config import COMPUTE_OPTIONS, PIPELINES, Options, as_record, select
from data import write_unlabeled
from distillation import distill, with_teacher_logits, write_teacher_outputs
from engines.engine import ModelFormat
from engines.graphs import write_graphs
from evaluation import evaluate
from export import GRAPHS, export, selected_graphs
from pruning import prune
from quantization import QUANTIZERS, format_row, quantize, train_quantization_aware
from runtime.artifacts import (
    find_finished,
    link_tree,
    measure_cost,
    partial_path,
    read_record,
    recover_finished,
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
from runtime.files import json_digest, write_json
from task import Task
from training import fine_tune_teacher, fit_linear, reporting, tune_decision_thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """How a stage is made, what it reads, the row it gives, and a version that grows when its code changes results."""

    make: Callable[..., Path]  # (model in, splits, task, out_dir, options) -> directory out
    options: type
    row: str
    version: int = 1
    reads: str = "splits"  # the rows that it sees: a property of the chain
    trains: bool = False  # all processes of a run make it together


STAGES = {
    "teacher": Stage(fine_tune_teacher, Options, "teacher", 2, trains=True),
    "start": Stage(distillation.build_student, Options, "start"),
    "trim": Stage(pruning.trim_vocabulary, Options, "trimmed", reads="text_splits"),
    "narrow": Stage(pruning.narrow_ffn, Options, "narrowed"),
    "distill": Stage(distill, Options, "student", 3, reads="soft_splits", trains=True),
    "plain": Stage(distill, Options, "student_plain", 3, trains=True),
    "prune": Stage(prune, Options, "pruned", 4, reads="soft_splits", trains=True),
    "qat": Stage(train_quantization_aware, Options, "qat", reads="soft_splits", trains=True),
    "tune": Stage(tune_decision_thresholds, Options, "tuned"),
    "quantize": Stage(quantize, Options, "", 3),
    "export": Stage(export, Options, "", 3),
    "linear": Stage(fit_linear, Options, "linear"),
}

DOES: dict[str, Callable[[Any], str]] = {  # stage -> its options -> what it does, and why
    "teacher": lambda of: (
        (
            f"fine-tune {of.teacher_path} on the labels, at most {of.teacher_epochs} epochs"
            if of.teacher_epochs
            else f"take {of.teacher_path} as it is"
        )
        + ": all that follows is measured against it"
    ),
    "linear": lambda of: (
        "fit TF-IDF and logistic regression: a transformer must earn its place beside them"
    ),
    "start": lambda of: (
        f"build what the student starts from, {of.student_path}: the next stages shrink it"
    ),
    "trim": lambda of: (
        f"drop tokens that the texts do not need, --trim_vocab {of.trim_vocab}: of a small model the "
        "embedding is most of the bytes"
    ),
    "narrow": lambda of: (
        f"drop the least important neurons, --ffn_width {of.ffn_width:g}: smaller and faster in every "
        "engine"
    ),
    "distill": lambda of: (
        f"train {of.student_path} on the teacher's outputs, at most {of.epochs} epochs: they say "
        "more than the labels"
    ),
    "plain": lambda of: (
        "train the same student on the labels alone: what the teacher adds is the difference"
    ),
    "prune": lambda of: (
        f"set {100 * of.prune_sparsity:g} % of the weights of the encoder's Linears "
        f"({of.prune_layers}) to zero by {of.prune_method}, then recover in at most "
        f"{of.fine_tune_epochs} epochs: zeros pack well"
    ),
    "qat": lambda of: (
        f"train {of.qat_epochs} epochs with the rounding of {of.qat} in the loop: the weights settle "
        "where fewer bits cost little"
    ),
    "tune": lambda of: (
        "choose decision thresholds on validation: one half need not be best for macro-F1"
    ),
    "quantize": lambda of: (
        f"store the model by --quant_method {of.quant_method}: fewer bits are fewer bytes"
    ),
    "export": lambda of: f"write graphs, --export {of.export}: on a CPU their engines outrun torch",
}

SHAPES = ("start", "trim", "narrow")

LEAVES = ("quantize", "export")

REFERENCES = ("linear", "student_plain")  # rows that nothing is made from

UNLABELED = "unlabeled.arrow"

CURVES = "curves"  # what --report_to tensorboard writes

EPOCHS = {
    "teacher": "teacher_epochs",
    "distill": "epochs",
    "plain": "epochs",
    "prune": "fine_tune_epochs",
    "qat": "qat_epochs",
}

OUTPUTS = 1  # grows when the code of the teacher's outputs changes what it finds

EVALUATION = 4  # grows when the code of evaluation changes what it finds


def forms_of(stage: str, options: Options) -> dict[str, str]:
    """Row name -> what is served, for every form that a stage writes."""
    if stage == "export":
        return {row: graph.form for row, graph in selected_graphs(options.export).items()}
    if stage == "quantize":
        method = options.quant_method
        return {format_row(method, engine): engine for engine in QUANTIZERS[method]}
    return {STAGES[stage].row: "linear" if stage == "linear" else "torch"}


def shrinking_stages(options: Options) -> list[str]:
    """The stages that change the shape of what is trained next: the student's start, else the teacher."""
    asked = {"trim": options.trim_vocab != "none", "narrow": options.ffn_width}
    names = [name for name in asked if asked[name]]
    return ["start", *names] if names and "distill" in PIPELINES[options.pipeline] else names


def trunk_of(options: Options) -> list[str]:
    """The full-precision stages that follow the teacher; thresholds are tuned on the last of them."""
    asked = {"qat": options.qat != "none", "tune": options.tune_threshold}
    names = [name for name in PIPELINES[options.pipeline] if name not in LEAVES]
    return [*names, *(name for name in asked if asked[name])]


def leaves_of(options: Options) -> list[str]:
    """The stages that start from the last full-precision model, each for itself."""
    asked = {
        "quantize": "quantize" in PIPELINES[options.pipeline],
        "export": options.export != "none",
    }
    return [name for name in LEAVES if asked[name]]


def check_zeros_kept(row: dict[str, Any], before: dict[str, dict[str, Any]]) -> None:
    """Stop the run where a form made from a pruned model has fewer zeros than it."""
    promised = before["pruned"]["sparsity"] if "pruned" in before else 0.0
    if row["sparsity"] < promised - 1e-6:
        raise RuntimeError(
            f"{row['stage']} has a sparsity of {row['sparsity']:.6f}, the pruned model {promised:.6f}"
        )


def gated(row: dict[str, Any], parent: dict[str, Any], limit: float) -> dict[str, Any]:
    """What a form loses of its parent's macro-F1 on validation, and whether that is little enough to ship it."""
    drop = parent["validation_macro_f1"] - row["validation_macro_f1"]
    return {"validation_drop": drop, "shipped": drop <= limit + 1e-9}


def find_evaluation(places: Iterable[Path], key: str) -> Path | None:
    """The first of these files that holds the evaluation with this key and has its predictions beside it."""
    for path in places:
        with suppress(OSError, ValueError):  # another run may be writing its own
            if (
                path.with_suffix(".parquet").is_file()
                and json.loads(path.read_text())["key"] == key
            ):
                return path
    return None


class StageRunner:
    """The stages of one split in `directory`, and the rows and forms made so far. `name` tells repeats apart."""

    elsewhere: Callable[..., Any]  # calls a function in the measuring process

    def __init__(
        self,
        name: str,
        directory: Path,
        models: Path,
        options: Options,
        splits: DatasetDict,
        task: Task,
    ):
        self.name, self.directory, self.models = name, directory, models
        self.options, self.splits, self.task = options, splits, task
        self.data_digest = json_digest(
            [rows_hash(splits["train"]), rows_hash(splits["validation"]), task.labels]
        )
        self.test_digest = rows_hash(splits["test"], splits["test"].column_names)
        self.forms: list[ModelFormat] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.shrunk: Path | None = None  # what the student starts from where its shape was changed

    def write_splits(self) -> None:
        """Keep the rows of every split, with their ids; and the texts without labels, which are in none."""
        kept = self.directory / "splits"
        kept.mkdir(parents=True, exist_ok=True)
        for name, split in self.splits.items():
            pq.write_table(split.data.table, kept / f"{name}.parquet")
        if self.has_unlabeled:
            write_unlabeled(
                self.options.unlabeled_path,
                self.options.text_column,
                self.splits,
                kept / UNLABELED,
                self.options.augment,
                self.options.seed,
            )

    @property
    def has_unlabeled(self) -> bool:
        """Whether there are texts that only the teacher labels."""
        return bool(self.options.unlabeled_path or self.options.augment)

    @cached_property
    def unlabeled(self) -> Dataset | None:
        """The texts that `write_splits` kept, on disk."""
        return (
            Dataset.from_file(str(self.directory / "splits" / UNLABELED))
            if self.has_unlabeled
            else None
        )

    def run(self) -> None:
        """Every stage of the pipeline, each from the one before it."""
        if self.name:
            log.info(
                "%s: %s",
                self.name,
                ", ".join(f"{rows} {name}" for name, rows in self.splits.num_rows.items()),
            )
        model = teacher_dir = self.stage("teacher", self.options.teacher_path)
        self.stage("linear", "")
        for name in shrinking_stages(self.options):
            model = self.stage(name, model)
        if "distill" in PIPELINES[self.options.pipeline] and model != teacher_dir:
            self.shrunk, model = model, teacher_dir
        if self.options.kd_baseline:
            self.stage("plain", teacher_dir)
        for name in trunk_of(self.options):
            model = self.stage(name, model)
        for name in leaves_of(self.options):
            self.stage(name, model)

    def stage_options(self, name: str) -> Any:
        """What the stage reads, and nothing that does not change what it makes; the student without a teacher learns
        from hard labels alone."""
        options = self.options
        if name == "plain":
            unread = {f.name: f.default for f in own_options(Options) if f.name.startswith("kd_")}
            options = replace(options, **unread, kd_alpha=0.0, kd_temperature=1.0)
        if name in LEAVES and not options.quant_auto:
            options = replace(
                options, max_f1_drop=None
            )  # it decides what is shipped, not what is made
        if name in EPOCHS:  # patience that cannot run out is all the same
            most = max(1, getattr(options, EPOCHS[name]) - 1)
            options = replace(
                options, early_stopping_patience=min(options.early_stopping_patience, most)
            )
        return select(options, STAGES[name].options)

    @cached_property
    def text_splits(self) -> DatasetDict:
        """The training rows, unlabeled ones among them, and validation rows."""
        rows = {
            name: self.splits[name].select_columns(["id", "text", "label"])
            for name in ("train", "validation")
        }
        if self.unlabeled:
            rows["train"] = concatenate_datasets([rows["train"], self.unlabeled])
        return DatasetDict(rows)

    @cached_property
    def soft_splits(self) -> DatasetDict:
        """The training rows, unlabeled ones among them, and validation rows with the teacher's logits."""
        train, validation = (
            self.with_outputs(name, self.splits[name]) for name in ("train", "validation")
        )
        if self.unlabeled:
            train = concatenate_datasets([train, self.with_outputs("unlabeled", self.unlabeled)])
        return DatasetDict(train=train, validation=validation)

    def with_outputs(self, name: str, rows: Dataset) -> Dataset:
        """The rows with the teacher's logits, which are made once for these texts and this teacher, then remembered."""
        teacher_dir, target = self.directory / "teacher", self.directory / "outputs" / name
        options = select(self.options, COMPUTE_OPTIONS)

        def make(partial: Path) -> dict[str, float]:
            with measure_cost() as cost:
                write_teacher_outputs(teacher_dir, rows, partial, options)
            return cost

        known = [
            read_record(teacher_dir)["fingerprint"],
            rows_hash(rows, ("id", "text")),
            options.max_length,
        ]
        what = f"ask the teacher about {len(rows):,} texts: every stage that learns from it reads these outputs"
        self.have(
            f"outputs/{name}",
            what,
            target,
            json_digest(["outputs", OUTPUTS, *known]),
            teacher_dir,
            make,
        )
        return with_teacher_logits(rows, target)

    @cached_property
    def unlabeled_digest(self) -> str:
        """What determines the rows that have no label."""
        return rows_hash(self.unlabeled, ("id", "text")) if self.unlabeled else ""

    def fingerprint(self, name: str, model_in: Path | str) -> str:
        """What determines the stage's result: its options, its code's version, what it starts from, its rows."""
        stage = STAGES[name]
        sources = [
            read_record(model_in)["fingerprint"]
            if isinstance(model_in, Path)
            else source_hash(model_in)
        ]
        if name in ("start", "distill", "plain"):
            sources.append(source_hash(self.options.student_path))
        if name in ("distill", "plain") and self.shrunk:
            sources.append(read_record(self.shrunk)["fingerprint"])
        if stage.reads != "splits":
            sources.append(self.unlabeled_digest)
        together = process_count() if stage.trains else 1
        return json_digest(
            [
                name,
                stage.version,
                as_record(self.stage_options(name)),
                together,
                sources,
                self.data_digest,
            ]
        )

    def stage(self, name: str, model_in: Path | str) -> Path:
        """The directory that the stage makes of `model_in`, or the remembered one; its rows are added."""
        stage, options, target = STAGES[name], self.stage_options(name), self.directory / name

        def make(partial: Path) -> dict[str, float]:
            splits = getattr(self, stage.reads)
            given = replace(options, student_path=start["start"]) if start else options
            with measure_cost() as cost:
                if stage.trains or is_main_process():
                    with reporting(self.options.report_to, f"{run}/{name}", curves):
                        stage.make(model_in, splits, self.task, partial, given)
            return cost

        fingerprint, run = self.fingerprint(name, model_in), self.directory.relative_to(self.models)
        curves = self.directory / CURVES / f"{name}.{fingerprint}"
        start = {"start": str(self.shrunk)} if self.shrunk and name in ("distill", "plain") else {}
        remembered = self.have(
            name,
            DOES[name](options),
            target,
            fingerprint,
            model_in,
            make,
            options=as_record(options),
            **start,
        )
        if is_main_process():
            self.add_rows(name, target, remembered)
        return target

    def have(
        self,
        name: str,
        what: str,
        target: Path,
        fingerprint: str,
        model_in: Path | str,
        make: Callable[[Path], dict[str, float]],
        **about: Any,
    ) -> bool:
        """Have the finished directory at `target`, remembered or made by `make`, which says what it cost; whether it
        was remembered. `what` it does is said in either case."""
        folders = [target, self.models, *([Path(self.options.reuse)] if self.options.reuse else [])]
        found = broadcast_from_main(
            lambda: recover_finished(target, fingerprint) or find_finished(folders, fingerprint)
        )
        if found is None:
            log.info("stage %s: %s (from %s)", name, what, model_in or "the training split")
            log.debug("stage %s: no finished directory has the fingerprint %s", name, fingerprint)
            with write_together(target, fingerprint) as partial:
                cost = make(partial)
                wait_for_everyone()
                if is_main_process():
                    write_record(
                        partial,
                        stage=name,
                        fingerprint=fingerprint,
                        parent=str(model_in),
                        **about,
                        **cost,
                    )
        else:
            log.info("stage %s: remembered from %s, not made again: %s", name, found, what)
            if found != target:
                with write_together(target, fingerprint) as partial:
                    if is_main_process():
                        link_tree(found, partial)
        return found is not None

    def add_rows(self, name: str, directory: Path, remembered: bool) -> None:
        """Evaluate every form that the stage wrote."""
        record, parent = read_record(directory), self.parent_of(name)
        for row_name, served in forms_of(name, self.options).items():
            form = ModelFormat(row_name, directory, served)
            row = {
                "stage": row_name,
                "engine": form.engine,
                "parent": parent,
                **self.evaluated(form, record),
            }
            row |= {
                "seconds": record["seconds"],
                "peak_memory_mb": record["peak_memory_mb"],
                "remembered": remembered,
                "directory": str(directory),
            }
            check_zeros_kept(row, self.rows)
            log.info("%s: macro-F1 %.4f, %.2f MB", row_name, row["macro_f1"], row["size_mb"])
            if "never_predicted" in row and not self.is_untrained(name):
                log.warning(
                    "note: %s never predicts %s on the test split", row_name, row["never_predicted"]
                )
            if name in LEAVES and self.options.max_f1_drop is not None:
                row |= gated(row, self.rows[parent], self.options.max_f1_drop)
            self.forms.append(form)
            self.rows[row_name] = row

    def is_untrained(self, name: str) -> bool:
        """Whether a stage writes what is trained later, perhaps under a new head."""
        return name in SHAPES and "distill" in PIPELINES[self.options.pipeline]

    def parent_of(self, name: str) -> str:
        """The row that a stage's rows are compared with: the teacher for the student, else the last full-precision one
        before it."""
        if STAGES[name].row in REFERENCES:
            return ""
        before = [row for row in self.rows if row not in (*REFERENCES, *self.leaf_rows)]
        if name == "distill":
            return "teacher"
        return before[-1] if before else ""

    @cached_property
    def leaf_rows(self) -> list[str]:
        """The rows of what is made of the last full-precision model."""
        return [row for leaf in leaves_of(self.options) for row in forms_of(leaf, self.options)]

    def final_forms(self) -> list[ModelFormat]:
        """Every graph that was asked for and the quantized model, or where there is none the last full-precision
        one."""
        whole = [] if "quantize" in leaves_of(self.options) else [self.parent_of("export")]
        return [form for form in self.forms if form.name in (*whole, *self.leaf_rows)]

    def shipped(self) -> list[ModelFormat]:
        """The forms that the artifact holds: the final ones, without those that the gate stops."""
        return [form for form in self.final_forms() if self.rows[form.name].get("shipped", True)]

    def evaluated(self, form: ModelFormat, record: dict[str, Any]) -> dict[str, Any]:
        """Quality and size of a form, measured in the other process unless an equal measurement is kept, here or in
        another experiment."""
        predictions = self.directory / "predictions"
        predictions.mkdir(exist_ok=True)
        teacher_path, out_path = (
            predictions / "teacher.parquet",
            predictions / f"{form.name}.parquet",
        )
        kept, compute = predictions / f"{form.name}.json", select(self.options, COMPUTE_OPTIONS)
        models = [record, read_record(self.directory / "teacher")]
        gate = self.options.max_f1_drop is not None
        validation = self.directory / "splits" / "validation.parquet" if gate else None
        key = json_digest(
            [
                [[one["fingerprint"], one["files"]] for one in models],
                self.test_digest,
                form.served,
                as_record(compute),
                gate,
                EVALUATION,
            ]
        )
        found = find_evaluation(
            (kept, *sorted(self.models.rglob(f"predictions/{form.name}.json"))), key
        )
        if found:
            log.debug("%s: evaluation remembered from %s", form.name, found)
        if found == kept:
            return json.loads(kept.read_text())["metrics"]
        kept.unlink(missing_ok=True)
        if found:
            shutil.copy2(found.with_suffix(".parquet"), out_path)
            metrics = json.loads(found.read_text())["metrics"]
        else:
            test = self.directory / "splits" / "test.parquet"
            metrics = self.elsewhere(
                evaluate, form, test, self.task, compute, teacher_path, out_path, validation
            )
        write_json(kept, {"key": key, "metrics": metrics})
        return metrics

    def finished_rows(self) -> list[dict[str, Any]]:
        """The rows, the linear reference first, with their compression ratios."""
        teacher_bytes, teacher_packed = (
            self.rows["teacher"][name] for name in ("bytes", "packed_bytes")
        )
        ordered = [
            self.rows["linear"],
            *(row for name, row in self.rows.items() if name != "linear"),
        ]
        repeat = {"repeat": self.name} if self.name else {}
        return [
            row
            | repeat
            | {
                "compression_ratio": teacher_bytes / row["bytes"],
                "packed_ratio": teacher_packed / row["packed_bytes"],
            }
            for row in ordered
        ]


def identity(form: ModelFormat) -> tuple[str, str]:
    """What a form is, wherever it lies: the fingerprint of its stage, and what is served of it."""
    return read_record(form.path)["fingerprint"], form.served


def add_times(chains: list[StageRunner]) -> None:
    """Time every form of chains over one teacher in turn, equal forms once; the fp32 teacher is timed in each engine
    that a row uses, as its baseline."""
    first, forms = chains[0], {identity(form): form for chain in chains for form in chain.forms}
    timed = {
        one: replace(form, name=f"{form.name} {i}") for i, (one, form) in enumerate(forms.items())
    }
    baselines, copy = {"torch": "teacher"}, partial_path(first.directory / "teacher", "graphs")
    if graphs := {form.engine for form in forms.values()} & {"onnx", "openvino"}:
        shutil.rmtree(copy, ignore_errors=True)
        link_tree(first.directory / "teacher", copy)
        write_graphs(copy)
    for engine in sorted(graphs):
        baselines[engine] = f"teacher in {engine}"
        timed["teacher", engine] = ModelFormat(baselines[engine], copy, GRAPHS[engine].form)
    log.info("benchmark: time %d forms in turn: the machine's moods hit them alike", len(timed))
    times = benchmark.measure(
        list(timed.values()),
        first.splits["test"][:]["text"],
        first.options.max_length,
        first.options.device,
        first.options.seed,
    )
    for chain in chains:
        own = {form.name: times[timed[identity(form)].name] for form in chain.forms}
        benchmark.add_speedups(
            chain.rows, times | own, baselines, {form.name: form.engine for form in chain.forms}
        )
