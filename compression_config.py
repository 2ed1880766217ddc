"""Every option of the command line, declared once.

The parser, `--help` and the option tables of the docs are derived from the dataclasses below; each stage
is handed its own dataclass, never the whole. Standard library only, so that `--help` is instant.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

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


class UserError(Exception):
    """Something the user can mend; each of `lines` names the flag or file, the value and the rule."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Rule:
    """A range check and the words that describe it."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Rule("must be 0 or more", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Rule("must be above 0", lambda value: 0 < value < math.inf)
SHARE = Rule("must be in [0, 1]", lambda value: 0 <= value <= 1)
SHARE_BELOW_ONE = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
PART = Rule("must be in (0, 1)", lambda value: 0 < value < 1)
SHARE_ABOVE_ZERO = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
LENGTH = Rule("must be in [8, 512]", lambda value: 8 <= value <= 512)
SEED = Rule("must be in [0, 4294967295]", lambda value: 0 <= value < 2**32)
PLAIN_NAME = Rule(
    "must be a plain folder name of letters, digits, '.', '_' and '-'",
    lambda value: value.replace(".", "a").replace("_", "a").replace("-", "a").isalnum() and value[0] not in ".-",
)


def knob(kind: type, default: Any, text: str, *, choices: tuple = (), rule: Rule | None = None, many: bool = False,
         auto: str = "", main: bool = False) -> Any:
    """One option: its type, default, help, choices and range. `auto` says what an unset default becomes."""
    return field(default=default, metadata={"kind": kind, "help": text, "choices": choices, "rule": rule,
                                            "many": many, "auto": auto, "main": main})  # fmt: skip


@dataclass(frozen=True)
class SeedOptions:
    """What makes runs repeat."""

    seed: int = knob(int, 42, "seed of the split, the fresh weights, the order and the dropout", rule=SEED)


@dataclass(frozen=True)
class LengthOptions:
    """How much of a text is read."""

    max_length: int = knob(int, 128, "tokens per text; longer texts are cut", rule=LENGTH)


@dataclass(frozen=True)
class DataOptions(SeedOptions):
    """The labelled file and how it is split."""

    dataset_path: str = knob(str, "data/HateSpeech.csv", "labelled CSV file", main=True)
    text_column: str | None = knob(str, None, "column with the texts", auto="found in the file")
    label_columns: tuple[str, ...] | None = knob(
        str, None, "one column of any values (binary, multi-class) or several 0/1 columns (multi-label)",
        many=True, auto="found in the file")  # fmt: skip
    validation_fraction: float = knob(float, 0.1, "share of the texts that chooses the best epoch", rule=PART)
    test_fraction: float = knob(float, 0.2, "share of the texts that is only ever measured on", rule=PART)
    data_fraction: float = knob(float, 1.0, "share of the training rows to use", rule=SHARE_ABOVE_ZERO)


@dataclass(frozen=True)
class ComputeOptions(SeedOptions, LengthOptions):
    """How any model is run."""

    batch: int = knob(int, 32, "texts per step", rule=POSITIVE, main=True)
    device: str = knob(str, "auto", "device of training and evaluation", choices=("auto", "cpu", "cuda"),
                       auto="cuda where there is one, else cpu")  # fmt: skip
    precision: str = knob(
        str, "auto", "number format of training", choices=("auto", "fp32", "fp16", "bf16"),
        auto="bf16 where the hardware has it, fp16 on older GPUs, fp32 elsewhere")  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions(ComputeOptions):
    """What every training shares: teacher, distillation and recovery."""

    weight_decay: float = knob(float, 0.01, "AdamW weight decay", rule=NOT_NEGATIVE)
    warmup_ratio: float = knob(float, 0.1, "share of the steps over which the learning rate rises",
                               rule=SHARE_BELOW_ONE)  # fmt: skip
    class_weights: str = knob(str, "none", "weight rare labels up in the hard-label loss",
                              choices=("none", "balanced"))  # fmt: skip
    early_stopping_patience: int = knob(int, 2, "epochs without a better validation macro-F1 before stopping",
                                        rule=POSITIVE)  # fmt: skip


@dataclass(frozen=True)
class TeacherOptions(TrainingOptions):
    """Stage `teacher`: fine-tune the encoder."""

    teacher_path: str = knob(str, "scratch:4x256", "hub name, model directory, or scratch:LAYERSxHIDDEN", main=True)
    teacher_epochs: int = knob(int, 5, "epochs of fine-tuning; 0 takes the teacher as it is", rule=NOT_NEGATIVE,
                               main=True)  # fmt: skip
    teacher_lr: float | None = knob(float, None, "learning rate of the teacher", rule=ABOVE_ZERO,
                                    auto="5e-5 for pretrained weights, 5e-4 for fresh ones")  # fmt: skip


@dataclass(frozen=True)
class SoftTargetOptions(TrainingOptions):
    """Learning from the teacher's outputs, in distillation and in recovery."""

    lr: float | None = knob(float, None, "learning rate of distillation and recovery", rule=ABOVE_ZERO,
                            auto="5e-5 for pretrained weights, 5e-4 for fresh ones")  # fmt: skip
    kd_alpha: float = knob(float, 0.7, "weight of the teacher's soft labels against the hard ones", rule=SHARE)
    kd_temperature: float = knob(float, 2.0, "softening of both distributions", rule=ABOVE_ZERO)


@dataclass(frozen=True)
class DistillOptions(SoftTargetOptions):
    """Stage `distill`: train the student on the teacher's outputs."""

    student_path: str | None = knob(
        str, None, "hub name, model directory, scratch:LxH, teacher:N (N layers of the teacher) or teacher:0,2,5",
        main=True, auto="teacher:2")  # fmt: skip
    epochs: int = knob(int, 10, "epochs of distillation", rule=POSITIVE, main=True)


@dataclass(frozen=True)
class CalibrationOptions(SeedOptions, LengthOptions):
    """Texts that Wanda's norms and static activation ranges are measured on."""

    calibration_samples: int = knob(int, 512, "training texts that Wanda and static quantization look at",
                                    rule=POSITIVE)  # fmt: skip


@dataclass(frozen=True)
class PruneOptions(SoftTargetOptions, CalibrationOptions):
    """Stage `prune`: set weights to zero, then recover."""

    prune_method: str = knob(str, "magnitude", "score of a weight", choices=("magnitude", "wanda"), main=True)
    prune_sparsity: float = knob(float, 0.4, "share of each output row's weights set to zero", rule=SHARE_BELOW_ONE,
                                 main=True)  # fmt: skip
    prune_layers: str = knob(str, "all", "encoder Linears to prune", choices=("all", "attention", "ffn"))
    fine_tune_epochs: int = knob(int, 3, "epochs of recovery after pruning; 0 for none", rule=NOT_NEGATIVE, main=True)


@dataclass(frozen=True)
class QuantizeOptions(CalibrationOptions):
    """Stage `quantize`: store and compute in fewer bits."""

    quant_method: str = knob(str, "fp16", "number format of the final model",
                             choices=("fp16", "dynamic", "static", "int4"), main=True)  # fmt: skip


@dataclass(frozen=True)
class OutputOptions:
    """What runs, and where results go."""

    pipeline: str = knob(str, "kd_prune_quant", "stages to run after the teacher", choices=tuple(PIPELINES), main=True)
    experiment: str | None = knob(str, None, "name of the run's folders", rule=PLAIN_NAME,
                                  auto="pipeline, data set and six digits of the run's fingerprint")  # fmt: skip
    output_dir: str = knob(str, ".", "parent of models/ and compressed_models/")


@dataclass(frozen=True)
class Options(OutputOptions, QuantizeOptions, PruneOptions, DistillOptions, TeacherOptions, DataOptions):
    """Every option of a run."""


OPTION_GROUPS = (OutputOptions, DataOptions, SeedOptions, LengthOptions, ComputeOptions, TrainingOptions,
                 TeacherOptions, SoftTargetOptions, DistillOptions, CalibrationOptions, PruneOptions,
                 QuantizeOptions)  # fmt: skip
MAIN_FLAGS = ("pipeline", "dataset_path", "teacher_path", "student_path", "teacher_epochs", "epochs",
              "fine_tune_epochs", "batch", "prune_method", "prune_sparsity", "quant_method")  # fmt: skip

Group = TypeVar("Group")


def narrow(options: Any, group: type[Group]) -> Group:
    """The part of `options` that one stage reads."""
    return group(**{f.name: getattr(options, f.name) for f in fields(group)})


def own_knobs(group: type) -> list:
    """The fields that `group` itself declares, in order."""
    return [f for f in fields(group) if f.name in group.__dict__.get("__annotations__", {})]


def knobs() -> dict[str, tuple[str, Any]]:
    """Option name -> (title of its group, its field); each name once, the user's own flags first."""
    found = {f.name: (group.__doc__.split("\n")[0].rstrip("."), f)
             for group in reversed(OPTION_GROUPS) for f in own_knobs(group)}  # fmt: skip
    first = [name for name in MAIN_FLAGS]
    rest = [f.name for group in OPTION_GROUPS for f in own_knobs(group) if not f.metadata["main"]]
    return {name: found[name] for name in dict.fromkeys(first + rest)}


def default_text(knob_field: Any) -> str:
    """The default as `--help` and the docs show it."""
    auto, default = knob_field.metadata["auto"], knob_field.default
    return auto if default in (None, "auto") and auto else str(default)


def build_parser() -> argparse.ArgumentParser:
    """All flags, as text: `parse_options` converts and checks them, so that every error is found at once."""
    parser = argparse.ArgumentParser(
        prog="main.py", allow_abbrev=False, usage="main.py [--pipeline NAME] [--dataset_path FILE] [options]",
        description="Fine-tune a teacher, distil, prune and quantize it, and print what each step cost.")  # fmt: skip
    groups: dict[str, Any] = {}
    for name, (title, knob_field) in knobs().items():
        meta = knob_field.metadata
        title = "main options" if meta["main"] else title
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        shown = "{" + ",".join(meta["choices"]) + "}" if meta["choices"] else meta["kind"].__name__.upper()
        help_text = f"{meta['help']} (default: {default_text(knob_field)})".replace("%", "%%")
        groups[title].add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=shown, help=help_text,
                                   nargs="+" if meta["many"] else None)  # fmt: skip
    parser.error = lambda message: (_ for _ in ()).throw(UserError(message))
    return parser


def convert(name: str, value: str, meta: dict) -> Any:
    """`value` as the option's type; UserError names the flag, the value and the rule."""
    try:
        converted = meta["kind"](value)
    except ValueError:
        number = "a whole number" if meta["kind"] is int else "a number"
        raise UserError(f"--{name} is {value}, but must be {number}") from None
    if meta["choices"] and converted not in meta["choices"]:
        raise UserError(f"--{name} is {value}, but must be one of {', '.join(meta['choices'])}")
    if converted == "" or (meta["rule"] and not meta["rule"].holds(converted)):
        raise UserError(f"--{name} is {value}, but {meta['rule'].text if converted != '' else 'must not be empty'}")
    return converted


def parse_options(argv: list[str] | None = None) -> Options:
    """The command line as `Options`; raises one UserError that holds every error found."""
    given, unknown = build_parser().parse_known_args(argv)
    errors = [f"unknown option {word}" for word in unknown if word.startswith("-")]
    if unknown and not errors:
        errors = [f"unexpected argument {unknown[0]!r}"]
    values = {}
    for name, text in vars(given).items():
        meta = knobs()[name][1].metadata
        try:
            values[name] = (tuple(convert(name, part, meta) for part in text) if meta["many"]
                            else convert(name, text, meta))  # fmt: skip
        except UserError as error:
            errors += error.lines
    options = Options(**values)
    held_out = options.validation_fraction + options.test_fraction
    if held_out >= 1:
        errors.append(f"--validation_fraction and --test_fraction add up to {held_out:g}, but must leave training rows")
    if errors:
        raise UserError(*errors)
    return options


def as_record(options: Any) -> dict[str, Any]:
    """Options as plain JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}


def option_table(group: type) -> str:
    """A Markdown table of the options that `group` declares."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for f in own_knobs(group):
        meta = f.metadata
        limits = ", ".join(f"`{choice}`" for choice in meta["choices"]) or (meta["rule"].text if meta["rule"] else "")
        lines.append(f"| `--{f.name}` | {default_text(f)} | {meta['help']}{f' ({limits})' if limits else ''} |")
    return "\n".join(lines)
