"""Every option of `main.py`, declared once.

The parser, `--help`, the YAML files and the option tables of the docs are derived from `Options`. A
stage is given only the options that it reads (`select`). Standard library only, so that `--help` is
instant.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

PIPELINES = {  # name -> the stages that follow the fine-tuned teacher
    "baseline": (),
    "kd_only": ("distill",),
    "prune_only": ("prune",),
    "quant_only": ("quantize",),
    "kd_prune": ("distill", "prune"),
    "kd_quant": ("distill", "quantize"),
    "prune_quant": ("prune", "quantize"),
    "kd_prune_quant": ("distill", "prune", "quantize"),
}
REPORTERS = (  # the trackers of the Trainer
    *("none", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte"),
    *("kubeflow", "mlflow", "neptune", "swanlab", "tensorboard", "trackio", "wandb"),
)

VERSION = "0.2.0.dev0"  # of this project, as in CHANGELOG.md

MAX_INPUT_GB = 2.0  # default of --max_input_gb, which inference.py also has


@dataclass(frozen=True)
class Rule:
    """A range check and the words that describe it."""

    text: str
    is_met: Callable[[Any], bool]


POSITIVE = Rule("must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Rule("must be 0 or more", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Rule("must be above 0", lambda value: 0 < value < math.inf)
FRACTION = Rule("must be in [0, 1]", lambda value: 0 <= value <= 1)
FRACTION_BELOW_ONE = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
OPEN_FRACTION = Rule("must be in (0, 1)", lambda value: 0 < value < 1)
FRACTION_ABOVE_ZERO = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
TWO_OR_MORE = Rule("must be in [2, 100]", lambda value: 2 <= value <= 100)
LENGTH = Rule("must be in [8, 512]", lambda value: 8 <= value <= 512)
SEED = Rule("must be in [0, 4294967295]", lambda value: 0 <= value < 2**32)


def is_width(value: float) -> bool:
    """Whether a value is a fraction of a width, or a number of neurons."""
    return 0 < value < 1 or (8 <= value < math.inf and value == int(value))


def is_vocabulary_size(value: str) -> bool:
    """Whether a value names a way to choose tokens, or how many to keep."""
    return value in ("none", "used", "auto") or (value.isdecimal() and int(value[:9]) >= 300)


def is_plain_name(value: str) -> bool:
    """Whether a value can name a directory on any system."""
    return value[0] not in ".-" and all(char.isalnum() or char in "._-" for char in value)


def split_label_name(pair: str) -> tuple[str, str]:
    """(label, name) of `LABEL=NAME`, both without surrounding white space; empty if missing."""
    label, _, name = pair.partition("=")
    return label.strip(), name.strip()


LABEL_NAME = Rule("must be LABEL=NAME", lambda pair: all(split_label_name(pair)))


def is_hub_name(value: str) -> bool:
    """Whether a value can name a repository of the hub, with or without its owner."""
    parts = value.split("/")
    has_valid_parts = all(re.fullmatch(r"\w([\w.-]*\w)?", part, re.ASCII) for part in parts)
    is_forbidden = "--" in value or ".." in value or value.endswith(".git")
    return has_valid_parts and len(parts) <= 2 and len(parts[-1]) <= 96 and not is_forbidden


HUB_NAME = Rule("must be NAME or OWNER/NAME, as the hub allows them", is_hub_name)
WIDTH = Rule("must be a fraction in (0, 1) or an integer of at least 8", is_width)
VOCABULARY = Rule("must be none, used, auto or an integer of at least 300", is_vocabulary_size)
PLAIN_NAME = Rule(
    "must be a plain directory name of letters, digits, '.', '_' and '-'", is_plain_name
)

MAIN = "Main options"
PIPELINE = "Pipeline"
DATA = "Data"
TRAINING = "Training"
DISTILLATION = "Distillation"
STRUCTURED_PRUNING = "Structured pruning"
PRUNING = "Pruning"
QUANTIZATION = "Quantization"
EXPORT = "Export and quality gate"
OUTPUT = "Output and logging"
GROUPS = (
    MAIN,
    PIPELINE,
    DATA,
    TRAINING,
    DISTILLATION,
    STRUCTURED_PRUNING,
    PRUNING,
    QUANTIZATION,
    EXPORT,
    OUTPUT,
)


def option(
    default: Any,
    help_text: str,
    group: str,
    *,
    choices: tuple[str, ...] = (),
    rule: Rule | None = None,
    auto: str = "",
) -> Any:
    """Declare one option. `auto` describes what an unset default becomes."""
    metadata = {"help": help_text, "group": group, "choices": choices, "rule": rule, "auto": auto}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Every option of a run, in the order of `--help`."""

    pipeline: str = option(
        "kd_prune_quant", "stages to run after the teacher", MAIN, choices=tuple(PIPELINES)
    )
    dataset_path: str = option(
        "data/HateSpeech.csv",
        "labeled file: CSV, TSV, JSON, JSON Lines or Parquet; text formats also as .gz or .zst",
        MAIN,
    )
    teacher_path: str = option(
        "scratch:4x256", "hub name, model directory, or scratch:LAYERSxHIDDEN", MAIN
    )
    student_path: str | None = option(
        None,
        "hub name, model directory, scratch:LxH, teacher:N (N layers of the teacher) or "
        "teacher:0,2,5",
        MAIN,
        auto="teacher:2",
    )
    teacher_epochs: int = option(
        5,
        "epochs of teacher fine-tuning; 0 uses the teacher without fine-tuning",
        MAIN,
        rule=NOT_NEGATIVE,
    )
    epochs: int = option(10, "epochs of distillation", MAIN, rule=POSITIVE)
    fine_tune_epochs: int = option(
        3, "epochs of fine-tuning after pruning (recovery); 0 for none", MAIN, rule=NOT_NEGATIVE
    )
    batch: int = option(32, "total batch size across all devices", MAIN, rule=POSITIVE)
    prune_method: str = option("magnitude", "pruning score", MAIN, choices=("magnitude", "wanda"))
    prune_sparsity: float = option(
        0.4,
        "fraction of the weights to set to zero in each row of the encoder's linear layers",
        MAIN,
        rule=FRACTION_BELOW_ONE,
    )
    quant_method: str = option(
        "fp16",
        "number format of the final model",
        MAIN,
        choices=("fp16", "dynamic", "static", "int4"),
    )

    run_ablation: tuple[str, ...] | None = option(
        None,
        "run several pipelines that share stages, and print one table; without names, all eight",
        PIPELINE,
        choices=tuple(PIPELINES),
        auto="only --pipeline",
    )
    seed: int = option(
        42, "random seed for splits, initial weights, batch order and dropout", PIPELINE, rule=SEED
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "repeat the run, splits included, with each seed, and add a mean row",
        PIPELINE,
        rule=SEED,
        auto="only --seed",
    )
    kd_baseline: bool = option(
        False, "also train the same student without a teacher, for comparison", PIPELINE
    )
    tune_threshold: bool = option(
        False,
        "choose decision thresholds on the validation set and fold them into the head",
        PIPELINE,
    )

    validation_path: str | None = option(None, "file with the validation rows", DATA, auto="none")
    test_path: str | None = option(None, "file with the test rows", DATA, auto="none")
    unlabeled_path: str | None = option(
        None,
        "unlabeled texts for distillation: one per line in .txt, else the text column",
        DATA,
        auto="none",
    )
    augment: int = option(
        0,
        "augmented variants of each training text for distillation (words dropped or replaced, "
        "texts spliced)",
        DATA,
        rule=NOT_NEGATIVE,
    )
    no_header: bool = option(
        False,
        "CSV and TSV files have no header; their columns are called column_1, column_2 ...",
        DATA,
    )
    max_input_gb: float = option(
        MAX_INPUT_GB,
        "largest content of a compressed or Parquet file, in gigabytes after decompression",
        DATA,
        rule=ABOVE_ZERO,
    )
    text_column: str | None = option(None, "column that contains the texts", DATA, auto="detected")
    label_columns: tuple[str, ...] | None = option(
        None,
        "one column (binary, multi-class, or several labels in a cell) or several 0/1 columns "
        "(multi-label)",
        DATA,
        auto="detected",
    )
    label_names: tuple[str, ...] | None = option(
        None,
        "names for the labels of the file, such as 0=clean 1=offensive",
        DATA,
        rule=LABEL_NAME,
        auto="the labels of the file",
    )
    label_separator: str | None = option(
        None,
        "separator of several labels in one cell, such as a comma; none: each cell is one label",
        DATA,
        auto="detected",
    )
    group_column: str | None = option(
        None,
        "column to stratify splits by; results are also reported per value",
        DATA,
        auto="none",
    )
    validation_fraction: float = option(
        0.1, "fraction held out as the validation set", DATA, rule=OPEN_FRACTION
    )
    test_fraction: float = option(
        0.2, "fraction held out as the test set", DATA, rule=OPEN_FRACTION
    )
    data_fraction: float = option(
        1.0, "fraction of the training rows to use", DATA, rule=FRACTION_ABOVE_ZERO
    )
    num_folds: int | None = option(
        None,
        "number of cross-validation folds, each with its own teacher; adds a mean row",
        DATA,
        rule=TWO_OR_MORE,
        auto="none",
    )

    max_length: int = option(
        128, "maximum tokens per text; longer texts are truncated", TRAINING, rule=LENGTH
    )
    device: str = option(
        "auto",
        "device for training and evaluation",
        TRAINING,
        choices=("auto", "cpu", "cuda"),
        auto="cuda if available, else cpu",
    )
    precision: str = option(
        "auto",
        "floating-point format of training",
        TRAINING,
        choices=("auto", "fp32", "fp16", "bf16"),
        auto="bf16 if the hardware supports it, fp16 on older GPUs, else fp32",
    )
    teacher_lr: float | None = option(
        None,
        "learning rate of the teacher",
        TRAINING,
        rule=ABOVE_ZERO,
        auto="5e-5 for pretrained weights, 5e-4 for randomly initialized ones",
    )
    lr: float | None = option(
        None,
        "learning rate of distillation and recovery",
        TRAINING,
        rule=ABOVE_ZERO,
        auto="5e-5 for pretrained weights, 5e-4 for randomly initialized ones",
    )
    weight_decay: float = option(0.01, "AdamW weight decay", TRAINING, rule=NOT_NEGATIVE)
    warmup_ratio: float = option(
        0.1,
        "fraction of the steps used for learning rate warmup",
        TRAINING,
        rule=FRACTION_BELOW_ONE,
    )
    accumulate: int = option(
        1, "gradient accumulation steps per batch, to save memory", TRAINING, rule=POSITIVE
    )
    class_weights: str = option(
        "none",
        "weight rare labels more heavily in the hard-label loss",
        TRAINING,
        choices=("none", "balanced"),
    )
    early_stopping_patience: int = option(
        2,
        "epochs without a better validation macro-F1 before early stopping",
        TRAINING,
        rule=POSITIVE,
    )

    student_tokenizer: str = option(
        "own",
        "tokenizer of a scratch student: its own, trained on the texts, or the teacher's",
        DISTILLATION,
        choices=("own", "teacher"),
    )
    kd_alpha: float = option(
        0.7,
        "weight of the soft-label loss; the hard-label loss gets the rest",
        DISTILLATION,
        rule=FRACTION,
    )
    kd_temperature: float = option(
        2.0, "temperature of the teacher and student distributions", DISTILLATION, rule=ABOVE_ZERO
    )
    kd_method: str = option(
        "logit",
        "what the student learns from: logits, or also hidden states, attention scores, "
        "self-attention relations, or all of them",
        DISTILLATION,
        choices=("logit", "hidden", "attention", "relation", "multi_level"),
    )

    trim_vocab: str = option(
        "none",
        "vocabulary to keep: used (every token in the texts; lossless on them), auto (the fewest "
        "tokens for 99.9 % of occurrences), or a number of tokens",
        STRUCTURED_PRUNING,
        rule=VOCABULARY,
    )
    ffn_width: float | None = option(
        None,
        "feed-forward width per layer: neurons, or a fraction below 1",
        STRUCTURED_PRUNING,
        rule=WIDTH,
        auto="unchanged",
    )

    prune_schedule: str = option(
        "oneshot",
        "prune once before recovery, or gradually during its first half",
        PRUNING,
        choices=("oneshot", "cubic"),
    )
    prune_layers: str = option(
        "all", "encoder linear layers to prune", PRUNING, choices=("all", "attention", "ffn")
    )
    calibration_samples: int = option(
        512,
        "number of training texts to calibrate --ffn_width, Wanda and static quantization",
        PRUNING,
        rule=POSITIVE,
    )

    qat: str = option(
        "none",
        "bit width for quantization-aware training (QAT)",
        QUANTIZATION,
        choices=("none", "int8", "int4"),
    )
    qat_epochs: int = option(
        2, "epochs of quantization-aware training", QUANTIZATION, rule=POSITIVE
    )

    export: str = option(
        "none",
        "inference engines to export to",
        EXPORT,
        choices=("none", "onnx", "openvino", "all"),
    )
    max_f1_drop: float | None = option(
        None,
        "largest allowed drop in validation macro-F1 of a quantized or exported format, such as "
        "0.01; "
        "formats that lose more are rejected",
        EXPORT,
        rule=FRACTION,
        auto="no limit",
    )
    quant_auto: bool = option(
        False,
        "keep more and more of the most sensitive layers in full precision until a format meets "
        "--max_f1_drop",
        EXPORT,
    )

    experiment: str | None = option(
        None,
        "name of the run's directories",
        OUTPUT,
        rule=PLAIN_NAME,
        auto="pipeline, data set and six hexadecimal digits of the run's fingerprint",
    )
    output_dir: str = option(".", "parent directory of models/ and compressed_models/", OUTPUT)
    audit: bool = option(False, "only audit the data: print the findings, write nothing", OUTPUT)
    reuse: str | None = option(
        None, "additional directory to search for finished stages to reuse", OUTPUT, auto="none"
    )
    overwrite: bool = option(False, "replace a run of the same name that had other options", OUTPUT)
    push_to_hub: str | None = option(
        None,
        "upload the finished model to this private repository of the Hugging Face Hub; the token "
        "is read from the environment variable HF_TOKEN",
        OUTPUT,
        rule=HUB_NAME,
        auto="none",
    )
    no_benchmark: bool = option(
        False, "do not measure times and memory; their columns stay empty", OUTPUT
    )
    no_examples: bool = option(False, "leave test texts out of report.html and the card", OUTPUT)
    config: str | None = option(
        None, "YAML file of options; the command line takes precedence", OUTPUT, auto="none"
    )
    quiet: bool = option(
        False, "print only errors and the table; the log file has the rest", OUTPUT
    )
    verbose: bool = option(False, "also show library logs and debug output", OUTPUT)
    report_to: str = option(
        "none",
        "experiment tracker for training curves; its package must be installed",
        OUTPUT,
        choices=REPORTERS,
    )


@dataclass(frozen=True)
class Removed:
    """An option of an earlier version: the default that it had, and what replaced it."""

    default: str
    replacement: str


REMOVED = {
    "kd_hidden_weight": Removed("1.0", "the losses of --kd_method now have equal weights"),
    "kd_attention_weight": Removed("1.0", "the losses of --kd_method now have equal weights"),
    "kd_relation_weight": Removed("1.0", "the losses of --kd_method now have equal weights"),
    "prune_scope": Removed("row", "weights are always compared within an output row"),
}

COMPUTE_OPTIONS = ("seed", "max_length", "batch", "device", "precision")
TRAINING_OPTIONS = (
    *COMPUTE_OPTIONS,
    "weight_decay",
    "warmup_ratio",
    "accumulate",
    "class_weights",
    "early_stopping_patience",
)
SOFT_TARGET_OPTIONS = (*TRAINING_OPTIONS, "lr", "kd_alpha", "kd_temperature")
STUDENT_OPTIONS = ("seed", "max_length", "student_path", "student_tokenizer")
CALIBRATION_OPTIONS = ("seed", "max_length", "calibration_samples")
GATE_OPTIONS = (*CALIBRATION_OPTIONS, "max_f1_drop", "quant_auto")
PLACE_OPTIONS = (  # they change neither a stage nor a result
    "audit",
    "max_input_gb",
    "experiment",
    "output_dir",
    "reuse",
    "overwrite",
    "push_to_hub",
    "no_benchmark",
    "no_examples",
    "config",
    "quiet",
    "verbose",
    "report_to",
)


@dataclass(frozen=True)
class Option:
    """The declaration of one option, as the parser and the docs read it."""

    name: str
    kind: type  # of one value
    is_list: bool  # several values may follow the flag
    default: Any
    help: str
    group: str
    choices: tuple[str, ...]
    rule: Rule | None
    auto: str

    @property
    def default_text(self) -> str:
        """The default as `--help` and the docs show it."""
        if self.default in (None, "auto") and self.auto:
            return self.auto
        return str(self.default)


def value_type(hint: Any) -> tuple[type, bool]:
    """(type of one value, whether it is a list) of an annotation such as `tuple[str, ...] |
    None`."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def declared_options() -> dict[str, Option]:
    """Name -> declaration of every option, in the order of `Options`."""
    hints = get_type_hints(Options)
    found = {}
    for one in fields(Options):
        kind, is_list = value_type(hints[one.name])
        found[one.name] = Option(one.name, kind, is_list, one.default, **one.metadata)
    return found


OPTIONS = declared_options()


class StageOptions(SimpleNamespace):
    """The options that one stage reads; any other name is an AttributeError."""


def select(options: Any, names: Iterable[str]) -> StageOptions:
    """The named options only."""
    return StageOptions(**{name: getattr(options, name) for name in names})


def as_record(options: Any) -> dict[str, Any]:
    """Options as plain JSON values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
    }
