"""Every option of the command line, declared once.

The parser, `--help` and the option tables of the docs are derived from the dataclasses below; each stage
is handed its own dataclass, never the whole. Standard library only (YAML apart), so that `--help` is instant.
"""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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
REPORTERS = ("none", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow",
             "mlflow", "neptune", "swanlab", "tensorboard", "trackio", "wandb")  # fmt: skip
MINIMUM_VERSIONS = {"torch": (2, 6), "transformers": (5, 0)}
NOT_OF_AN_ABLATION = {
    "pipeline": "an ablation runs the pipelines that stand after --run_ablation",
    "experiment": "each pipeline of an ablation is an experiment with a name of its own",
}
CONVERTERS = {bool: {"true": True, "false": False}.__getitem__}
KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class UserError(Exception):
    """Something the user can mend; each of `lines` names the flag or file, the value and the rule."""

    def __init__(self, *lines: str):
        self.lines = tuple("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)
        super().__init__("\n".join(self.lines))

    def tell(self, program: str) -> int:
        """Print the lines to stderr, and give the exit code."""
        for line in self.lines:
            print(f"{program}: error: {line}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """Raises what it refuses."""

    def error(self, message: str) -> NoReturn:
        """UserError in argparse's words."""
        raise UserError(message)


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
TWO_OR_MORE = Rule("must be in [2, 100]", lambda value: 2 <= value <= 100)
WIDTH = Rule("must be a share in (0, 1) or a whole number of at least 8",
             lambda value: 0 < value < 1 or (8 <= value < math.inf and value == int(value)))  # fmt: skip
TRIM = Rule(
    "must be none, used, auto or a whole number of at least 300",
    lambda value: value in ("none", "used", "auto") or (value.isdecimal() and int(value[:9]) >= 300),
)
LENGTH = Rule("must be in [8, 512]", lambda value: 8 <= value <= 512)
SEED = Rule("must be in [0, 4294967295]", lambda value: 0 <= value < 2**32)
PLAIN_NAME = Rule(
    "must be a plain folder name of letters, digits, '.', '_' and '-'",
    lambda value: value.replace(".", "a").replace("_", "a").replace("-", "a").isalnum() and value[0] not in ".-",
)


def knob(kind: type, default: Any, text: str, *, choices: tuple = (), rule: Rule | None = None, many: bool = False,
         auto: str = "", main: bool = False) -> Any:
    """One option: its type, default, help, choices and range. `auto` says what an unset default becomes. One of `many`
    choices may be given without a value and means them all."""
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

    dataset_path: str = knob(str, "data/HateSpeech.csv", "labelled file: CSV, TSV, JSON Lines or Parquet, plain, .gz "
                             "or .zst", main=True)  # fmt: skip
    validation_path: str | None = knob(str, None, "file with the validation rows", auto="none")
    test_path: str | None = knob(str, None, "file with the test rows", auto="none")
    unlabeled_path: str | None = knob(str, None, "texts without labels for students to learn from the teacher on: one "
                                      "a line in .txt, else the text column", auto="none")  # fmt: skip
    augment: int = knob(int, 0, "variants of each training text (words dropped, replaced, texts spliced) for students "
                        "to learn from the teacher on", rule=NOT_NEGATIVE)  # fmt: skip
    text_column: str | None = knob(str, None, "column with the texts", auto="found in the file")
    label_columns: tuple[str, ...] | None = knob(
        str, None, "one column of any values (binary, multi-class) or several 0/1 columns (multi-label)",
        many=True, auto="found in the file")  # fmt: skip
    group_column: str | None = knob(str, None, "column whose values the splits spread evenly and the results are given "
                                    "for one by one", auto="none")  # fmt: skip
    validation_fraction: float = knob(float, 0.1, "share of the texts that chooses the best epoch", rule=PART)
    test_fraction: float = knob(float, 0.2, "share of the texts that is only ever measured on", rule=PART)
    data_fraction: float = knob(float, 1.0, "share of the training rows to use", rule=SHARE_ABOVE_ZERO)
    num_folds: int | None = knob(int, None, "folds of a cross-validation: each has its own teacher, and a mean row",
                                 rule=TWO_OR_MORE, auto="none")  # fmt: skip


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
    accumulate: int = knob(int, 1, "parts that a batch is computed in, one after the other, to fit into less memory",
                           rule=POSITIVE)  # fmt: skip
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
class StudentOptions(SeedOptions, LengthOptions):
    """Stage `start`: what the student starts from."""

    student_path: str | None = knob(
        str, None, "hub name, model directory, scratch:LxH, teacher:N (N layers of the teacher) or teacher:0,2,5",
        main=True, auto="teacher:2")  # fmt: skip
    student_tokenizer: str = knob(str, "own", "tokenizer of a scratch student: its own, learnt from the texts, or the "
                                  "teacher's", choices=("own", "teacher"))  # fmt: skip


@dataclass(frozen=True)
class DistillOptions(SoftTargetOptions, StudentOptions):
    """Stage `distill`: train the student on the teacher's outputs."""

    epochs: int = knob(int, 10, "epochs of distillation", rule=POSITIVE, main=True)
    kd_method: str = knob(str, "logit", "what the student learns from: the teacher's logits alone, or its states too",
                          choices=("logit", "hidden", "attention", "relation", "multi_level"))  # fmt: skip
    kd_hidden_weight: float = knob(float, 1.0, "weight of the loss of hidden states", rule=NOT_NEGATIVE)
    kd_attention_weight: float = knob(float, 1.0, "weight of the loss of attention scores", rule=NOT_NEGATIVE)
    kd_relation_weight: float = knob(float, 1.0, "weight of the loss of self-attention relations", rule=NOT_NEGATIVE)


@dataclass(frozen=True)
class CalibrationOptions(SeedOptions, LengthOptions):
    """Texts that Wanda's norms and static activation ranges are measured on."""

    calibration_samples: int = knob(int, 512, "training texts that --ffn_width, Wanda and static "
                                    "quantization look at",
                                    rule=POSITIVE)  # fmt: skip


@dataclass(frozen=True)
class TrimOptions:
    """Stage `trim`: drop the tokens that the texts do not need."""

    trim_vocab: str = knob(str, "none", "tokens to keep: used (all that the texts use; changes nothing on them), auto "
                           "(the fewest for 99.9 % of what they use), or how many", rule=TRIM)  # fmt: skip


@dataclass(frozen=True)
class NarrowOptions(ComputeOptions, CalibrationOptions):
    """Stage `narrow`: drop the least important neurons of the feed-forward blocks."""

    ffn_width: float | None = knob(float, None, "neurons of a layer's feed-forward block: a number, or a share below 1",
                                   rule=WIDTH, auto="as it is")  # fmt: skip


@dataclass(frozen=True)
class PruneOptions(SoftTargetOptions, CalibrationOptions):
    """Stage `prune`: set weights to zero, then recover."""

    prune_method: str = knob(str, "magnitude", "score of a weight", choices=("magnitude", "wanda"), main=True)
    prune_sparsity: float = knob(float, 0.4, "share of the weights set to zero", rule=SHARE_BELOW_ONE,
                                 main=True)  # fmt: skip
    prune_scope: str = knob(str, "row", "weights that compete with one another: those of an output row, of a layer, or "
                            "all; Wanda's compete in rows", choices=("row", "layer", "global"))  # fmt: skip
    prune_schedule: str = knob(str, "oneshot", "all at once before recovery, or step by step during its first half",
                               choices=("oneshot", "cubic"))  # fmt: skip
    prune_layers: str = knob(str, "all", "encoder Linears to prune", choices=("all", "attention", "ffn"))
    fine_tune_epochs: int = knob(int, 3, "epochs of recovery after pruning; 0 for none", rule=NOT_NEGATIVE, main=True)


@dataclass(frozen=True)
class QatOptions(SoftTargetOptions):
    """Stage `qat`: train with the rounding of fewer bits in the loop."""

    qat: str = knob(str, "none", "bits that the weights are made ready for before they are quantized and exported",
                    choices=("none", "int8", "int4"))  # fmt: skip
    qat_epochs: int = knob(int, 2, "epochs of that training", rule=POSITIVE)


@dataclass(frozen=True)
class GateOptions(CalibrationOptions):
    """What a form in fewer bits may lose."""

    max_f1_drop: float | None = knob(
        float, None, "validation macro-F1, such as 0.01, that a quantized or exported form may lose; one that loses "
        "more is not shipped", rule=SHARE, auto="no limit")  # fmt: skip
    quant_auto: bool = knob(
        bool, False, "leave the layers that are most sensitive by measurement in full precision, until a form loses no "
        "more than --max_f1_drop")  # fmt: skip


@dataclass(frozen=True)
class QuantizeOptions(GateOptions):
    """Stage `quantize`: store and compute in fewer bits."""

    quant_method: str = knob(str, "fp16", "number format of the final model",
                             choices=("fp16", "dynamic", "static", "int4"), main=True)  # fmt: skip


@dataclass(frozen=True)
class ExportOptions(GateOptions):
    """Stage `export`: the last full-precision model as graphs in fp32, int8 and 4 bits."""

    export: str = knob(str, "none", "engines to write graphs for", choices=("none", "onnx", "openvino", "all"))


@dataclass(frozen=True)
class PipelineOptions:
    """What runs, and how often."""

    pipeline: str = knob(str, "kd_prune_quant", "stages to run after the teacher", choices=tuple(PIPELINES), main=True)
    run_ablation: tuple[str, ...] | None = knob(
        str, None, "run several pipelines over shared stages, and print one table over them; without names, all eight",
        choices=tuple(PIPELINES), many=True, auto="--pipeline alone")  # fmt: skip
    seeds: tuple[int, ...] | None = knob(int, None, "repeat everything, split included, with each seed; a mean row",
                                         rule=SEED, many=True, auto="--seed alone")  # fmt: skip
    kd_baseline: bool = knob(bool, False, "also train the same student without a teacher, for comparison")
    tune_threshold: bool = knob(bool, False, "choose decision thresholds on validation and fold them into the head")


@dataclass(frozen=True)
class PlaceOptions:
    """Where results go and what is taken from earlier runs; none of it changes a result."""

    audit: bool = knob(bool, False, "only look at the data: print what was found, train nothing")
    experiment: str | None = knob(str, None, "name of the run's folders", rule=PLAIN_NAME,
                                  auto="pipeline, data set and six digits of the run's fingerprint")  # fmt: skip
    output_dir: str = knob(str, ".", "parent of models/ and compressed_models/")
    reuse: str | None = knob(str, None, "folder in which finished stages are looked for too", auto="none")
    overwrite: bool = knob(bool, False, "let the run replace one of the same name that had other options")
    no_examples: bool = knob(bool, False, "leave the texts of the test split out of report.html")
    config: str | None = knob(str, None, "YAML file of options; the command line wins over it", auto="none")


@dataclass(frozen=True)
class LogOptions:
    """What a run says while it goes; none of it changes a result."""

    quiet: bool = knob(bool, False, "only errors and the table; the log file holds the rest")
    verbose: bool = knob(bool, False, "the libraries' log lines too, and what we look at ourselves for faults")
    report_to: str = knob(str, "none", "where training curves are sent too, through the Trainer; its package must be "
                          "installed", choices=REPORTERS)  # fmt: skip


@dataclass(frozen=True)
class Options(
    LogOptions, PlaceOptions, PipelineOptions, ExportOptions, QuantizeOptions, QatOptions, PruneOptions, NarrowOptions,
    TrimOptions, DistillOptions, TeacherOptions, DataOptions,
):
    """Every option of a run."""


OPTION_GROUPS = (PipelineOptions, DataOptions, SeedOptions, LengthOptions, ComputeOptions, TrainingOptions,
                 TeacherOptions, StudentOptions, SoftTargetOptions, DistillOptions, TrimOptions, NarrowOptions,
                 CalibrationOptions, PruneOptions, QatOptions, QuantizeOptions, ExportOptions, GateOptions,
                 PlaceOptions, LogOptions)  # fmt: skip
MAIN_FLAGS = ("pipeline", "dataset_path", "teacher_path", "student_path", "teacher_epochs", "epochs",
              "fine_tune_epochs", "batch", "prune_method", "prune_sparsity", "quant_method")  # fmt: skip

Group = TypeVar("Group")


def narrow(options: Any, group: type[Group]) -> Group:
    """The part of `options` that one stage reads."""
    return group(**{f.name: getattr(options, f.name) for f in fields(group)})


def own_knobs(group: type) -> list:
    """The fields that `group` itself declares, in order."""
    return [f for f in fields(group) if f.name in group.__dict__.get("__annotations__", {})]


@cache
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


@cache
def build_parser() -> Parser:
    """All flags, as text: `parse_options` converts and checks them, so that every error is found at once."""
    parser = Parser(
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
        takes = ({"action": "store_const", "const": "true"} if meta["kind"] is bool
                 else {"metavar": shown, "nargs": ("*" if meta["choices"] else "+") if meta["many"] else None})
        groups[title].add_argument(f"--{name}", default=argparse.SUPPRESS, help=help_text, **takes)
    return parser


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; bytes of arguments and files that cannot stand in it as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def convert(name: str, value: str) -> Any:
    """`value` as the type of option `name`; UserError names the flag, the value and the rule."""
    meta = knobs()[name][1].metadata
    try:
        converted = CONVERTERS.get(meta["kind"], meta["kind"])(value)
    except (ValueError, KeyError):
        raise UserError(f"--{name} is {value}, but must be {KIND_NAMES[meta['kind']]}") from None
    if meta["choices"] and converted not in meta["choices"]:
        raise UserError(f"--{name} is {value}, but must be one of {', '.join(meta['choices'])}")
    if value.strip() == "":
        raise UserError(f"--{name} is {value!r}, but must not be empty")
    if not is_utf8(value):
        raise UserError(f"--{name} is {value}, but must be UTF-8")
    if meta["rule"] and not meta["rule"].holds(converted):
        raise UserError(f"--{name} is {value}, but {meta['rule'].text}")
    return converted


def convert_all(given: dict[str, str | list[str]], errors: list[str]) -> dict[str, Any]:
    """Option name -> converted value; the lines of what is refused go to `errors`."""
    values = {}
    for name, text in given.items():
        try:
            if isinstance(text, list):
                values[name] = tuple(convert(name, part) for part in text) or knobs()[name][1].metadata["choices"]
            else:
                values[name] = convert(name, text)
        except UserError as error:
            errors += error.lines
    return values


def config_entries(path: str | Path) -> dict[str, str | list[str]]:
    """The entries of a YAML file as texts; UserError where it is no mapping of options to values."""
    import yaml

    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config is {path}, but it cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"--config is {path}, but must hold lines such as `batch: 16`")
    entries: dict[str, str | list[str]] = {}
    for key, value in node.value:
        many = key.value in knobs() and knobs()[key.value][1].metadata["many"]
        if key.value not in knobs() or key.value == "config":
            raise UserError(f"--config is {path}, but {key.value!r} is no option of that file")
        if key.value in entries:
            raise UserError(f"--config is {path}, but it gives {key.value} twice")
        parts = value.value if many and isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            raise UserError(f"--config is {path}, but {key.value} must be {'values' if many else 'one value'}")
        entries[key.value] = [part.value for part in parts] if many else value.value
    return entries


def read_config_file(path: str | Path) -> dict[str, Any]:
    """A file that a run wrote, as plain JSON values."""
    errors: list[str] = []
    values = convert_all(config_entries(path), errors)
    if errors:
        raise UserError(*(f"--config is {path}: {line}" for line in errors))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def write_config_file(path: Path, record: dict[str, Any]) -> None:
    """The YAML file that reproduces a run when given as `--config`."""
    import yaml

    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(yaml.safe_dump(record, allow_unicode=True, sort_keys=False), encoding="utf-8")
    partial.replace(path)


def file_errors(flag: str, path: str | None) -> list[str]:
    """Why a file that is given cannot be read; nothing where it can."""
    if path is None:
        return []
    if not Path(path).is_file():
        return [f"{flag} is {path}, but {'that is a directory' if Path(path).is_dir() else 'there is no such file'}"]
    return [f"{flag} is {path}, but that file is empty"] if Path(path).stat().st_size == 0 else []


def combination_errors(options: Options) -> list[str]:
    """Options that are right alone and wrong together."""
    stages = PIPELINES[options.pipeline]
    errors, held_out = [], options.validation_fraction + options.test_fraction
    if held_out >= 1:
        errors.append(f"--validation_fraction and --test_fraction add up to {held_out:g}, but must leave training rows")
    if options.num_folds and options.seeds:
        errors.append("--num_folds and --seeds are given, but a run repeats over one of them; use --seed for the folds")
    if options.num_folds and options.test_path:
        errors.append("--num_folds is given with --test_path, but folds make their own test splits")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        errors.append(f"--seeds is {' '.join(map(str, options.seeds))}, but each seed must be given once")
    if options.num_folds and options.validation_fraction + 1 / options.num_folds >= 1:
        errors.append(f"--num_folds is {options.num_folds} with --validation_fraction {options.validation_fraction:g}, "
                      "but must leave training rows")  # fmt: skip
    more = more_texts(options)
    if more and not options.kd_alpha and options.kd_method == "logit":
        errors.append(f"--{more[0]} is given with --kd_alpha 0, but without labels only the teacher can teach")
    if options.trim_vocab != "none" and options.kd_method != "logit" and "distill" in stages:
        errors.append(f"--trim_vocab is given with --kd_method {options.kd_method}, which compares token by token, but "
                      "the trimmed student numbers its tokens otherwise than the teacher; use logit")  # fmt: skip
    if "prune" in stages and options.prune_scope != "row" and options.prune_method == "wanda":
        errors.append(f"--prune_scope is {options.prune_scope} with --prune_method wanda, but Wanda compares weights "
                      "within rows alone")  # fmt: skip
    if "prune" in stages and options.prune_schedule == "cubic" and not options.fine_tune_epochs:
        errors.append("--prune_schedule is cubic with --fine_tune_epochs 0, but it prunes while recovery trains")
    if options.quiet and options.verbose:
        errors.append("--quiet and --verbose are given, but a run can be only one of them")
    if options.quant_auto and options.max_f1_drop is None:
        errors.append("--quant_auto is given, but needs --max_f1_drop, such as 0.01, to know what is good enough")
    return errors + list(dict.fromkeys(idle_options(options).values()))


def more_texts(options: Options) -> list[str]:
    """The options that are given and add texts without labels."""
    return [name for name in ("unlabeled_path", "augment") if getattr(options, name)]


def idle_options(options: Options) -> dict[str, str]:
    """The options that are given and of no use to the pipeline, and why."""
    stages, more, idle = PIPELINES[options.pipeline], more_texts(options), {}
    distils, quantizes = "distill" in stages, "quantize" in stages
    recovers = "prune" in stages and options.fine_tune_epochs
    taught = distils or recovers or options.qat != "none"
    if more and not taught and (more == ["augment"] or options.trim_vocab == "none"):
        idle |= dict.fromkeys(more, f"--{more[0]} is given, but --pipeline {options.pipeline} trains nothing on the "
                                    "teacher's outputs")  # fmt: skip
    if options.ffn_width and not taught:
        idle["ffn_width"] = (f"--ffn_width is given, but --pipeline {options.pipeline} trains nothing afterwards that "
                             "would make it good")  # fmt: skip
    if options.kd_baseline and not distils:
        idle["kd_baseline"] = f"--kd_baseline is given, but --pipeline {options.pipeline} trains no student"
    if options.export == "none" and not (quantizes and options.quant_method != "fp16"):
        needs = "but nothing is stored in integers; give --export, or a pipeline with --quant_method dynamic, static "
        idle |= {name: f"--{name} is given, {needs}or int4" for name in ("quant_auto", "qat")
                 if getattr(options, name) not in (False, "none")}  # fmt: skip
    if options.max_f1_drop is not None and options.export == "none" and not quantizes:
        idle["max_f1_drop"] = (f"--max_f1_drop is given, but --pipeline {options.pipeline} makes no form in fewer "
                               "bits; give --export too")  # fmt: skip
    return idle


def runs_of(options: Options) -> list[Options]:
    """The options of every run: one of each pipeline of an ablation, without those that are of use only to others of
    its pipelines; else the options as they are."""
    if options.run_ablation is None:
        return [options]
    runs = [replace(options, pipeline=name, run_ablation=None) for name in options.run_ablation]
    idle = [set(idle_options(one)) for one in runs]
    of_no_use, unset = set.intersection(*idle), asdict(Options())
    return [replace(one, **{name: unset[name] for name in found - of_no_use})
            for one, found in zip(runs, idle, strict=True)]  # fmt: skip


def ablation_errors(options: Options, given: Iterable[str]) -> list[str]:
    """Why the pipelines of an ablation cannot be run together."""
    names = options.run_ablation
    if names is None:
        return []
    errors = [f"--run_ablation and --{name} are given, but {why}" for name, why in NOT_OF_AN_ABLATION.items()
              if name in given]  # fmt: skip
    if len(set(names)) < len(names):
        errors.append(f"--run_ablation is {' '.join(names)}, but each pipeline must be given once")
    return errors


def path_errors(options: Options) -> list[str]:
    """What can be said about files and folders before anything is read."""
    errors = [line for name in ("dataset_path", "validation_path", "test_path", "unlabeled_path")
              for line in file_errors(f"--{name}", getattr(options, name))]  # fmt: skip
    if options.reuse and not Path(options.reuse).is_dir():
        errors.append(f"--reuse is {options.reuse}, but there is no such directory")
    parent = next(path for path in [Path(options.output_dir).absolute(), *Path(options.output_dir).absolute().parents]
                  if path.exists())  # fmt: skip
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        errors.append(f"--output_dir is {options.output_dir}, but {parent} is no directory that can be written to")
    return errors


def unknown_words(words: list[str]) -> list[str]:
    """A line for each flag that does not exist, or for the first word that belongs to none."""
    flags = [f"unknown option {word}" for word in words if word.startswith("-")]
    return flags or [f"unexpected argument {word!r}" for word in words[:1]]


def parse_options(argv: list[str] | None = None) -> Options:
    """Command line and `--config` file as `Options`; raises one UserError that holds every error found."""
    given, unknown = build_parser().parse_known_args(argv)
    errors = unknown_words(unknown)
    entries: dict[str, str | list[str]] = {}
    if "config" in given:
        try:
            entries = config_entries(given.config)
        except UserError as error:
            errors += error.lines
    if "run_ablation" in given:
        entries.pop("pipeline", None)  # the command line wins over the file
    entries |= vars(given)
    options = Options(**convert_all(entries, errors))
    lines = [line for one in runs_of(options) for line in combination_errors(one)]
    errors += ablation_errors(options, entries) + list(dict.fromkeys(lines)) + path_errors(options)
    if errors:
        raise UserError(*errors)
    return options


def check_installed(flag: str, value: str, packages: Iterable[str]) -> None:
    """UserError in one line if a package that the value of `flag` needs is not installed."""
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise UserError(f"{flag} is {value}, but must have {' and '.join(missing)}: pip install {' '.join(missing)}")


def check_versions() -> None:
    """Refuse libraries older than this code was written for."""
    lines = []
    for name, least in MINIMUM_VERSIONS.items():
        found = version(name)
        if tuple(int(part) for part in found.split(".")[:2]) < least:
            lines.append(f"{name} is {found}, but must be at least {'.'.join(map(str, least))}: "
                         "pip install -r requirements.txt")  # fmt: skip
    if lines:
        raise UserError(*lines)


def as_record(options: Any) -> dict[str, Any]:
    """Options as plain JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}


def command_line(options: Options) -> str:
    """The command that gives these options, however they were given; those at their defaults are left out."""
    words = ["python", "main.py"]
    for name, (_, knob_field) in knobs().items():
        value, meta = getattr(options, name), knob_field.metadata
        if value != knob_field.default and name != "config":
            values = [] if meta["kind"] is bool else value if meta["many"] else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def option_table(group: type) -> str:
    """A Markdown table of the options that `group` declares."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for f in own_knobs(group):
        meta = f.metadata
        limits = ", ".join(f"`{choice}`" for choice in meta["choices"]) or (meta["rule"].text if meta["rule"] else "")
        lines.append(f"| `--{f.name}` | {default_text(f)} | {meta['help']}{f' ({limits})' if limits else ''} |")
    return "\n".join(lines)
