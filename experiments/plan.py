"""The stages of a run, as data: adding a stage is one function and one entry in `STAGES`.

`plan(options)` gives the steps of a run in the order in which they are made. A step contains
everything that distinguishes it from the others, so that the runner is a loop over the steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from compression_config import (
    CALIBRATION_OPTIONS,
    COMPUTE_OPTIONS,
    GATE_OPTIONS,
    PIPELINES,
    SOFT_TARGET_OPTIONS,
    STUDENT_OPTIONS,
    TRAINING_OPTIONS,
    Options,
    StageOptions,
    select,
)
from distillation import build_student, distill
from export import export, exported_formats
from pruning import narrow_ffn, prune, trim_vocabulary
from quantization import quantize, quantized_formats, train_quantization_aware
from training import fine_tune_teacher, fit_linear, tune_decision_thresholds

NOT_GIVEN = (None, False, "none")  # values of an option that ask for no stage


class Role(Enum):
    """The place of a stage in a run."""

    TEACHER = "starts from --teacher_path"
    BASELINE = "starts from nothing"
    SHAPE = "changes the shape of what is trained next"
    STUDENT = "starts from the teacher, or from its reshaped student"
    MODEL = "starts from the last full-precision model"
    FORMAT = "turns the last full-precision model into other formats"


class Rows(Enum):
    """What the rows of a stage contain."""

    LABELED = "labeled rows"
    TEXTS = "the same, with unlabeled texts among the training rows"
    SOFT = "the same, with unlabeled texts and the teacher's logits"


# The splits that a stage is given. No stage is given the test split.
TRAIN = ("train",)
VALIDATION = ("validation",)
TRAIN_AND_VALIDATION = ("train", "validation")


@dataclass(frozen=True)
class Stage:
    """How a model directory is made from another one."""

    name: str  # of its directory
    make: Callable[..., Path]  # (model in, splits, task, directory out, options) -> directory out
    role: Role
    options: tuple[str, ...]  # the options that it reads
    description: str  # what it does and why; a format string of its options
    row: str = ""  # its row of the results
    format_name: str = "torch"  # what is served in that row
    formats: Callable[[Options], dict[str, str]] | None = None  # its rows, if there are several
    asked_by: tuple[str, ...] = ()  # it is made if one of these options is given ...
    in_pipeline: str = ""  # ... and the pipeline has this stage
    rows: Rows = Rows.LABELED
    splits: tuple[str, ...] = TRAIN_AND_VALIDATION
    overrides: dict[str, Any] = field(default_factory=dict)  # options with fixed values here
    epochs: str = ""  # the option with its number of training epochs
    description_untrained: str = ""  # its description with 0 epochs
    is_trained: bool = False  # all processes of a run train it together
    is_compared_only: bool = False  # nothing is made from it
    version: int = 1  # increases when its code changes its results

    def is_wanted(self, options: Options) -> bool:
        """Whether a run with these options makes the stage."""
        if self.in_pipeline and self.in_pipeline not in PIPELINES[options.pipeline]:
            return False
        if not self.asked_by:
            return True
        return any(getattr(options, name) not in NOT_GIVEN for name in self.asked_by)

    def selected_options(self, options: Options) -> StageOptions:
        """The options that the stage reads, without values that cannot change its result."""
        selected = select(options, self.options)
        for name, value in self.overrides.items():
            setattr(selected, name, value)
        if self.role is Role.FORMAT and not options.quant_auto:
            selected.max_f1_drop = (
                None  # it decides which formats are rejected, not how they are made
            )
        if self.epochs:
            # patience that exceeds the number of epochs never stops training
            longest = max(1, getattr(options, self.epochs) - 1)
            selected.early_stopping_patience = min(options.early_stopping_patience, longest)
        return selected

    def splits_of(self, options: Options) -> tuple[str, ...]:
        """The names of the splits that the stage is given."""
        if self.role is Role.FORMAT and not options.quant_auto:
            return TRAIN  # only the quality gate reads validation rows
        return self.splits

    def describe(self, options: StageOptions) -> str:
        """What the stage does with these options, and why."""
        template = self.description
        if self.epochs and not getattr(options, self.epochs):
            template = self.description_untrained
        return template.format(**vars(options))

    def formats_of(self, options: Options) -> dict[str, str]:
        """Row of the results -> format name, for each format that the stage writes."""
        if self.formats is None:
            return {self.row: self.format_name}
        return self.formats(options)


STAGES = (
    Stage(
        "teacher",
        fine_tune_teacher,
        Role.TEACHER,
        options=(*TRAINING_OPTIONS, "teacher_path", "teacher_epochs", "teacher_lr"),
        description="fine-tune {teacher_path} on the labels, up to {teacher_epochs} epochs: the "
        "baseline of every comparison",
        description_untrained="use {teacher_path} without fine-tuning: the baseline of every "
        "comparison",
        row="teacher",
        epochs="teacher_epochs",
        is_trained=True,
        version=3,
    ),
    Stage(
        "linear",
        fit_linear,
        Role.BASELINE,
        options=(),
        description="fit TF-IDF and logistic regression: the baseline to beat",
        row="linear",
        format_name="linear",
        splits=TRAIN,
        is_compared_only=True,
        version=2,
    ),
    Stage(
        "start",
        build_student,
        Role.SHAPE,
        options=STUDENT_OPTIONS,
        splits=TRAIN,
        description="build the initial student, {student_path}: the next stages shrink it",
        row="start",
        asked_by=("trim_vocab", "ffn_width"),
        in_pipeline="distill",
        version=2,
    ),
    Stage(
        "trim",
        trim_vocabulary,
        Role.SHAPE,
        options=("trim_vocab",),
        description="trim the vocabulary, --trim_vocab {trim_vocab}: the embedding is most of a "
        "small model",
        row="trimmed",
        asked_by=("trim_vocab",),
        rows=Rows.TEXTS,
    ),
    Stage(
        "narrow",
        narrow_ffn,
        Role.SHAPE,
        options=(*COMPUTE_OPTIONS, "calibration_samples", "ffn_width"),
        splits=TRAIN,
        description="prune feed-forward neurons, --ffn_width {ffn_width:g}: smaller and faster in "
        "every engine",
        row="narrowed",
        asked_by=("ffn_width",),
    ),
    Stage(
        "plain",
        distill,
        Role.STUDENT,
        options=(*SOFT_TARGET_OPTIONS, *STUDENT_OPTIONS, "epochs", "kd_method"),
        description="train the same student on the labels only, up to {epochs} epochs: the "
        "difference is the effect of the teacher",
        row="student_plain",
        asked_by=("kd_baseline",),
        overrides={"kd_method": "logit", "kd_alpha": 0.0, "kd_temperature": 1.0},
        epochs="epochs",
        is_trained=True,
        is_compared_only=True,
        version=5,
    ),
    Stage(
        "distill",
        distill,
        Role.STUDENT,
        options=(*SOFT_TARGET_OPTIONS, *STUDENT_OPTIONS, "epochs", "kd_method"),
        description="distill the teacher into {student_path}, up to {epochs} epochs: soft labels "
        "carry more information than hard ones",
        row="student",
        in_pipeline="distill",
        rows=Rows.SOFT,
        epochs="epochs",
        is_trained=True,
        version=5,
    ),
    Stage(
        "prune",
        prune,
        Role.MODEL,
        options=(
            *SOFT_TARGET_OPTIONS,
            *CALIBRATION_OPTIONS,
            "prune_method",
            "prune_sparsity",
            "prune_schedule",
            "prune_layers",
            "fine_tune_epochs",
        ),
        description="prune linear layers ({prune_layers}) to a sparsity of {prune_sparsity:g} by "
        "{prune_method}, then fine-tune up to {fine_tune_epochs} epochs: zeros compress well",
        description_untrained="prune linear layers ({prune_layers}) to a sparsity of "
        "{prune_sparsity:g} by {prune_method}, without recovery: zeros compress well",
        row="pruned",
        in_pipeline="prune",
        rows=Rows.SOFT,
        epochs="fine_tune_epochs",
        is_trained=True,
        version=5,
    ),
    Stage(
        "qat",
        train_quantization_aware,
        Role.MODEL,
        options=(*SOFT_TARGET_OPTIONS, "qat", "qat_epochs"),
        description="quantization-aware training for {qat}, up to {qat_epochs} epochs: weights "
        "adapt to the quantization grid",
        row="qat",
        asked_by=("qat",),
        rows=Rows.SOFT,
        epochs="qat_epochs",
        is_trained=True,
        version=2,
    ),
    Stage(
        "tune",
        tune_decision_thresholds,
        Role.MODEL,
        options=COMPUTE_OPTIONS,
        splits=VALIDATION,
        description="choose decision thresholds on validation: 0.5 is not always the best "
        "threshold for macro-F1",
        row="tuned",
        asked_by=("tune_threshold",),
    ),
    Stage(
        "quantize",
        quantize,
        Role.FORMAT,
        options=(*GATE_OPTIONS, "quant_method"),
        description="quantize, --quant_method {quant_method}: fewer bits make smaller files",
        formats=quantized_formats,
        in_pipeline="quantize",
        version=4,
    ),
    Stage(
        "export",
        export,
        Role.FORMAT,
        options=(*GATE_OPTIONS, "export"),
        description="export graphs, --export {export}: on a CPU their engines are faster than "
        "PyTorch",
        formats=exported_formats,
        asked_by=("export",),
        version=4,
    ),
)


@dataclass(frozen=True)
class Step:
    """A stage of one run: what it starts from and what it is compared with."""

    stage: Stage
    options: StageOptions
    start: str  # the step whose model it starts from; "" for none
    student_start: str  # the step with the student's reshaped starting point; "" for --student_path
    compared_with: str  # the row that its rows are compared with; "" for none
    formats: dict[str, str]  # row -> format name
    splits: tuple[str, ...]  # the names of the splits that it is given
    description: str
    is_retrained: bool  # the student is trained from it, so its own predictions do not matter


def plan(options: Options) -> list[Step]:
    """The steps of a run with these options, in order."""
    steps: list[Step] = []
    model = ""  # the step whose model the next one starts from
    model_row = ""
    reshaped = ""  # the step with the student's reshaped starting point
    distills = "distill" in PIPELINES[options.pipeline]
    for stage in STAGES:
        if not stage.is_wanted(options):
            continue
        is_shape_of_student = stage.role is Role.SHAPE and distills
        selected = stage.selected_options(options)
        start = model
        if stage.role in (Role.TEACHER, Role.BASELINE):
            start = ""
        elif stage.role is Role.STUDENT:
            start = "teacher"
        compared_with = "teacher" if stage.role is Role.STUDENT else model_row
        steps.append(
            Step(
                stage=stage,
                options=selected,
                start=start,
                student_start=reshaped if stage.role is Role.STUDENT else "",
                compared_with="" if stage.is_compared_only else compared_with,
                formats=stage.formats_of(options),
                splits=stage.splits_of(options),
                description=stage.describe(selected),
                is_retrained=is_shape_of_student,
            )
        )
        if is_shape_of_student:
            reshaped = stage.name
        if not stage.is_compared_only and stage.role is not Role.FORMAT:
            model = stage.name
            model_row = stage.row
    return steps


def final_rows(steps: list[Step]) -> list[str]:
    """The rows of a run's final formats: every exported graph and the quantized model, if any.

    Without quantization, the last full-precision model is among them.
    """
    rows = []
    quantizes = any(step.stage.in_pipeline == "quantize" for step in steps)
    if not quantizes:
        models = [step for step in steps if step.stage.role is not Role.FORMAT]
        rows.append([step.stage.row for step in models if not step.stage.is_compared_only][-1])
    for step in steps:
        if step.stage.role is Role.FORMAT:
            rows += step.formats
    return rows
