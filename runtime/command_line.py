"""From `argv` and a YAML file to checked `Options`; every error is collected and reported at
once. No torch."""

import argparse
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from compression_config import (
    GROUPS,
    OPTIONS,
    PIPELINES,
    REMOVED,
    VERSION,
    Options,
    split_label_name,
)
from runtime.errors import UserError
from runtime.hub import token_errors
from runtime.suggestions import did_you_mean, option_suggestion

SEPARATOR = "--"  # argparse takes it for the end of the options, even as a value
UNRECOGNIZED = "unrecognized arguments: "  # how argparse's message starts
BOOLEANS = {"true": True, "false": False}
KIND_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
EXCLUDED_FROM_ABLATION = {
    "pipeline": "an ablation runs the pipelines named after --run_ablation",
    "experiment": "each pipeline of an ablation is an experiment with its own name",
    "push_to_hub": "an ablation has several models; upload the one that you choose with hf upload",
}
INPUT_FILES = ("dataset_path", "validation_path", "test_path", "unlabeled_path")

MODELS = ("teacher_path", "student_path")
OUTPUT_DIRECTORIES = ("models", "compressed_models")  # in --output_dir
ARCHIVE_PARTIAL_SUFFIX = ".tar.zst.partial"  # the longest suffix of an experiment's name
MAX_DEFAULT_NAME_BYTES = 150  # of an experiment that is named after its data set
MAX_INNER_BYTES = 200  # of paths in an experiment's directory, such as those of checkpoints

Entries = dict[str, str | list[str]]  # option name -> its value or values, as text


class ArgumentParser(argparse.ArgumentParser):
    """The parser of a command: it has `--version`, and raises UserError where argparse would
    exit."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        version = f"{self.prog} {VERSION}"
        self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message; unknown options get a suggestion."""
        if message.startswith(UNRECOGNIZED):
            options = [name.lstrip("-") for name in self._option_string_actions]
            for word in message.removeprefix(UNRECOGNIZED).split():
                if word.startswith("--"):
                    message += option_suggestion(word[2:].partition("=")[0], options)
        raise UserError(message)


@cache
def build_parser() -> ArgumentParser:
    """All flags, as text: `parse_options` converts and checks them, so that all errors are found
    at once."""
    parser = ArgumentParser(
        prog="main.py",
        allow_abbrev=False,
        usage="main.py [--pipeline NAME] [--dataset_path FILE] [options]",
        description="Fine-tune a teacher, then distill, prune and quantize it, and report what "
        "each step cost.",
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, declared in OPTIONS.items():
        help_text = f"{declared.help} (default: {declared.default_text})".replace("%", "%%")
        arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text}
        if declared.kind is bool:
            arguments |= {"action": "store_const", "const": "true"}
        else:
            arguments["metavar"] = declared.kind.__name__.upper()
            if declared.choices:
                arguments["metavar"] = "{" + ",".join(declared.choices) + "}"
            if declared.is_list:
                arguments["nargs"] = "*" if declared.choices else "+"
        groups[declared.group].add_argument(f"--{name}", **arguments)
    return parser


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, that is, whether it contains no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def convert(name: str, value: str) -> Any:
    """`value` as the type of option `name`; UserError names the flag, the value and the rule."""
    declared = OPTIONS[name]
    try:
        converted = BOOLEANS[value] if declared.kind is bool else declared.kind(value)
    except (ValueError, KeyError):
        kind = KIND_NAMES[declared.kind]
        raise UserError(f"--{name} is {value}, but must be {kind}") from None
    if declared.choices and converted not in declared.choices:
        suggestion = did_you_mean(value, declared.choices)
        raise UserError(
            f"--{name} is {value}, but must be one of {', '.join(declared.choices)}{suggestion}"
        )
    if value.strip() == "":
        raise UserError(f"--{name} is {value!r}, but must not be empty")
    if not is_utf8(value):
        raise UserError(f"--{name} is {value}, but must be UTF-8")
    if declared.rule and not declared.rule.is_met(converted):
        raise UserError(f"--{name} is {value}, but {declared.rule.text}")
    return converted


def convert_all(entries: Entries, errors: list[str]) -> dict[str, Any]:
    """Option name -> converted value; error lines for invalid values are appended to `errors`."""
    values = {}
    for name, text in entries.items():
        declared = OPTIONS[name]
        if text == [] and not (declared.is_list and declared.choices):
            text = [SEPARATOR] if declared.is_list else SEPARATOR  # argparse drops it
        try:
            if isinstance(text, list):
                converted = tuple(convert(name, part) for part in text)
                values[name] = converted or declared.choices
            else:
                values[name] = convert(name, text)
        except UserError as error:
            errors += error.lines
    return values


def read_yaml(path: Path) -> list[tuple[Any, Any]]:
    """The (key, value) nodes of a YAML file, all values as text; ValueError if it is not a mapping
    that can be read."""
    import yaml

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"it cannot be read as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("it cannot be read as YAML: it is nested too deeply") from None
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("it must contain lines such as `batch: 16`")
    return node.value


def config_entries(path: str | Path, source: str | None = None) -> Entries:
    """The entries of a YAML file as text; UserError if it is not a mapping of options to values.

    `source` is how errors name the file, by default as the value of `--config`.
    """
    from yaml import ScalarNode, SequenceNode

    source = source or f"--config is {path}"
    try:
        nodes = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}, but {error}") from None
    entries: Entries = {}
    for key, value in nodes:
        if not isinstance(key, ScalarNode):
            raise UserError(f"{source}, but its keys must be names of options")
        if key.value in REMOVED:
            check_removed(source, key.value, value.value)
            continue
        if key.value not in OPTIONS or key.value == "config":
            suggestion = did_you_mean(key.value, OPTIONS.keys() - {"config"})
            raise UserError(
                f"{source}, but {key.value!r} is not an option of that file{suggestion}"
            )
        if key.value in entries:
            raise UserError(f"{source}, but {key.value} is given twice")
        is_list = OPTIONS[key.value].is_list
        parts = value.value if is_list and isinstance(value, SequenceNode) else [value]
        if not all(isinstance(part, ScalarNode) for part in parts):
            expected = "values" if is_list else "one value"
            raise UserError(f"{source}, but {key.value} must be {expected}")
        entries[key.value] = [part.value for part in parts] if is_list else value.value
    return entries


def check_removed(source: str, name: str, value: Any) -> None:
    """Raise UserError if a file sets a removed option to anything other than its former default."""
    if value != REMOVED[name].default:
        replacement = REMOVED[name].replacement
        raise UserError(f"{source}, but --{name} was removed: {replacement}")


def command_line(options: Options) -> str:
    """The command that gives these options; those at their defaults are left out."""
    words = ["python", "main.py"]
    for name, declared in OPTIONS.items():
        value = getattr(options, name)
        if value == declared.default or name == "config":
            continue
        words.append(f"--{name}")
        if declared.is_list:
            words += map(str, value)
        elif declared.kind is not bool:
            words.append(str(value))
    return shlex.join(words)


def option_table(group: str) -> str:
    """A Markdown table of the options of one group."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for declared in OPTIONS.values():
        if declared.group != group:
            continue
        limits = ", ".join(f"`{choice}`" for choice in declared.choices)
        if not limits and declared.rule:
            limits = declared.rule.text
        meaning = f"{declared.help} ({limits})" if limits else declared.help
        lines.append(f"| `--{declared.name}` | {declared.default_text} | {meaning} |")
    return "\n".join(lines)


def read_config_file(path: Path) -> dict[str, Any]:
    """A file that a run wrote, as plain JSON values."""
    errors: list[str] = []
    values = convert_all(config_entries(path, str(path)), errors)
    if errors:
        raise UserError(*(f"{path}: {line}" for line in errors))
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def config_text(record: dict[str, Any]) -> str:
    """The content of the YAML file that reproduces a run when given as `--config`."""
    import yaml

    return yaml.safe_dump(record, allow_unicode=True, sort_keys=False)


def path_error(flag: str, path: str | Path) -> str:
    """Why the file system cannot look a path up, such as a name that is too long; "" if it can, or
    if nothing is there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"{flag} is {path}, but it cannot be used as a path: {reason}"
    return ""


def file_errors(flag: str, path: str | None) -> list[str]:
    """Why a given file cannot be read; empty if it can."""
    if path is None:
        return []
    reason = unreadable_reason(path)
    return [f"{flag} is {path}, but {reason}"] if reason else []


def unreadable_reason(path: str | Path) -> str:
    """Why a path is not a file that can be read, worded to follow `but`; empty if it is one."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(status.st_mode):
        return "that is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "that is a pipe or a device, which can be read only once"
    if not os.access(path, os.R_OK):
        return "it cannot be read: Permission denied"
    return "" if status.st_size else "that file is empty"


def directory_errors(flag: str, path: str | Path, directory: Path) -> list[str]:
    """Why nothing can be written into `directory`; empty if it can. `path` is the value of
    `flag`."""
    if directory.is_dir() and os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return []
    return [f"{flag} is {path}, but {directory} is not a writable directory"]


def output_errors(options: Options) -> list[str]:
    """Why the run cannot write into `--output_dir`, including names that would be too long."""
    flag = "--output_dir"
    error = path_error(flag, options.output_dir)
    if error:
        return [error]
    output_dir = Path(options.output_dir).absolute()
    existing = next(path for path in [output_dir, *output_dir.parents] if path.exists())
    errors = directory_errors(flag, options.output_dir, existing)
    for name in OUTPUT_DIRECTORIES:
        for path in (output_dir / name, output_dir / name / (options.experiment or "")):
            if os.path.lexists(path):
                errors += directory_errors(flag, options.output_dir, path)
    return list(dict.fromkeys(errors)) or length_errors(options, output_dir, existing)


def length_errors(options: Options, output_dir: Path, existing: Path) -> list[str]:
    """Names that the file system would refuse after training; `existing` is a directory on it."""
    if not hasattr(os, "pathconf"):  # Windows
        return []
    longest_name = os.pathconf(existing, "PC_NAME_MAX")
    longest_path = os.pathconf(existing, "PC_PATH_MAX")
    experiment_bytes = len(os.fsencode(options.experiment or ""))
    allowed_bytes = longest_name - len(ARCHIVE_PARTIAL_SUFFIX)
    if experiment_bytes > allowed_bytes:
        return [
            f"--experiment has {experiment_bytes} bytes, but must have at most {allowed_bytes}: "
            "names of files are made of it"
        ]
    allowed_bytes = longest_path - (experiment_bytes or MAX_DEFAULT_NAME_BYTES) - MAX_INNER_BYTES
    output_bytes = len(os.fsencode(output_dir))
    if output_bytes > allowed_bytes:
        return [
            f"--output_dir has {output_bytes} bytes as an absolute path, but must have at most "
            f"{allowed_bytes}: longer paths are made of it"
        ]
    return []


def split_errors(options: Options) -> list[str]:
    """Options of splits and repeats that exclude one another."""
    errors = []
    held_out = options.validation_fraction + options.test_fraction
    if held_out >= 1:
        errors.append(
            f"--validation_fraction and --test_fraction add up to {held_out:g}, but must leave "
            "training rows"
        )
    if options.num_folds and options.seeds:
        errors.append(
            "--num_folds and --seeds are given, but a run repeats over only one of them; use "
            "--seed for the folds"
        )
    if options.num_folds and options.test_path:
        errors.append("--num_folds is given with --test_path, but folds make their own test splits")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        seeds = " ".join(map(str, options.seeds))
        errors.append(f"--seeds is {seeds}, but each seed must be given once")
    if options.num_folds and options.validation_fraction + 1 / options.num_folds >= 1:
        errors.append(
            f"--num_folds is {options.num_folds} with --validation_fraction "
            f"{options.validation_fraction:g}, but must leave training rows"
        )
    return errors


def label_errors(options: Options) -> list[str]:
    """Label names that are given twice, and a separator that has no column to separate."""
    errors = []
    pairs = [split_label_name(pair) for pair in options.label_names or ()]
    for kind, words in (
        ("label", [label for label, _ in pairs]),
        ("name", [name for _, name in pairs]),
    ):
        for word, count in Counter(words).items():
            if count > 1:
                errors.append(f"--label_names has the {kind} {word} twice, but each must be unique")
    columns = options.label_columns or ()
    if options.label_separator is not None and len(columns) > 1:
        errors.append(
            f"--label_separator is given with --label_columns {' '.join(columns)}, but it "
            "separates the labels in one column"
        )
    return errors


def combination_errors(options: Options) -> list[str]:
    """Options that are valid individually but not in combination."""
    stages = PIPELINES[options.pipeline]
    errors = split_errors(options) + label_errors(options)
    sources = unlabeled_sources(options)
    if sources and not options.kd_alpha and options.kd_method == "logit":
        errors.append(
            f"--{sources[0]} is given with --kd_alpha 0, but unlabeled texts need a "
            "distillation loss"
        )
    if options.trim_vocab != "none" and options.kd_method != "logit" and "distill" in stages:
        errors.append(
            f"--trim_vocab is given with --kd_method {options.kd_method}, which compares token by "
            "token, but the trimmed student uses different token ids from the teacher; use logit"
        )
    if "prune" in stages and options.prune_schedule == "cubic" and not options.fine_tune_epochs:
        errors.append(
            "--prune_schedule is cubic with --fine_tune_epochs 0, but it prunes during recovery"
        )
    if options.quiet and options.verbose:
        errors.append("--quiet and --verbose cannot be combined")
    if options.quant_auto and options.max_f1_drop is None:
        errors.append("--quant_auto needs --max_f1_drop, for example 0.01")
    return errors + list(dict.fromkeys(unused_options(options).values()))


def unlabeled_sources(options: Options) -> list[str]:
    """The given options that add unlabeled texts."""
    return [name for name in ("unlabeled_path", "augment") if getattr(options, name)]


def unused_options(options: Options) -> dict[str, str]:
    """The given options that have no effect in the pipeline, and why."""
    pipeline = f"--pipeline {options.pipeline}"
    stages = PIPELINES[options.pipeline]
    distills = "distill" in stages
    quantizes = "quantize" in stages
    recovers = "prune" in stages and options.fine_tune_epochs
    uses_soft_targets = distills or recovers or options.qat != "none"
    sources = unlabeled_sources(options)
    unused = {}
    is_used_to_trim = options.unlabeled_path and options.trim_vocab != "none"
    if sources and not uses_soft_targets and not is_used_to_trim:
        reason = f"--{sources[0]} is given, but {pipeline} trains nothing on the teacher's outputs"
        unused |= dict.fromkeys(sources, reason)
    if options.ffn_width and not uses_soft_targets:
        unused["ffn_width"] = (
            f"--ffn_width is given, but {pipeline} has no training afterwards to recover the loss"
        )
    if options.kd_baseline and not distills:
        unused["kd_baseline"] = f"--kd_baseline is given, but {pipeline} trains no student"
    if options.export == "none" and not (quantizes and options.quant_method != "fp16"):
        for name in ("quant_auto", "qat"):
            if getattr(options, name) not in (False, "none"):
                unused[name] = (
                    f"--{name} is given, but nothing is stored in integers; give --export, or a "
                    "pipeline with --quant_method dynamic, static or int4"
                )
    if options.max_f1_drop is not None and options.export == "none" and not quantizes:
        unused["max_f1_drop"] = (
            f"--max_f1_drop is given, but {pipeline} makes no quantized format; also give --export"
        )
    return unused


def expand_runs(options: Options) -> list[Options]:
    """The options of every run: one per pipeline of an ablation, else the options unchanged.

    In an ablation, each pipeline resets the options that only other pipelines use.
    """
    if options.run_ablation is None:
        return [options]
    runs = [replace(options, pipeline=name, run_ablation=None) for name in options.run_ablation]
    unused = [set(unused_options(run)) for run in runs]
    unused_everywhere = set.intersection(*unused)
    expanded = []
    for run, names in zip(runs, unused, strict=True):
        defaults = {name: OPTIONS[name].default for name in names - unused_everywhere}
        expanded.append(replace(run, **defaults))
    return expanded


def ablation_errors(options: Options, given: Iterable[str]) -> list[str]:
    """Why the pipelines of an ablation cannot be run together."""
    names = options.run_ablation
    if names is None:
        return []
    errors = [
        f"--run_ablation and --{name} are given, but {reason}"
        for name, reason in EXCLUDED_FROM_ABLATION.items()
        if name in given
    ]
    if len(set(names)) < len(names):
        errors.append(f"--run_ablation is {' '.join(names)}, but each pipeline must be given once")
    return errors


def path_errors(options: Options, refused: Iterable[str] = ()) -> list[str]:
    """What is wrong with files and directories, before anything is read.

    Options that are `refused` already have their defaults, which nobody asked for.
    """
    errors = []
    for name in INPUT_FILES:
        if name not in refused:
            errors += file_errors(f"--{name}", getattr(options, name))
    for name in MODELS:
        if getattr(options, name) is not None:
            errors.append(path_error(f"--{name}", getattr(options, name)))
    if options.reuse and not os.path.isdir(options.reuse):
        errors.append(f"--reuse is {options.reuse}, but there is no such directory")
    return [error for error in errors if error] + output_errors(options)


def unknown_arguments(words: list[str]) -> list[str]:
    """An error line for each unknown or removed flag; if there are none, for the first stray
    word."""
    lines = []
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in REMOVED:
            lines.append(f"--{name} was removed: {REMOVED[name].replacement}")
        elif word.startswith("-"):
            lines.append(f"unknown option {word}{option_suggestion(name, OPTIONS)}")
    return lines or [f"unexpected argument {word!r}" for word in words[:1]]


def parse_options(argv: list[str] | None = None) -> Options:
    """Command line and `--config` file as `Options`; raises one UserError with every error
    found."""
    given, unknown = build_parser().parse_known_args(argv)
    errors = unknown_arguments(unknown)
    given_values = convert_all({"config": given.config}, []) if "config" in given else {}
    entries: Entries = {}
    if given_values.get("config"):
        try:
            entries = config_entries(given_values["config"])
        except UserError as error:
            errors += error.lines
    if "run_ablation" in given:  # the command line takes precedence over the file
        entries.pop("pipeline", None)
    if "pipeline" in given:
        entries.pop("run_ablation", None)
    entries |= vars(given)
    num_errors = len(errors)
    values = convert_all(entries, errors)
    options = Options(**values)
    if len(errors) == num_errors:  # a default in place of a refused value would give false errors
        combinations = [line for run in expand_runs(options) for line in combination_errors(run)]
        errors += ablation_errors(options, entries)
        errors += list(dict.fromkeys(combinations))
    errors += path_errors(options, entries.keys() - values.keys())
    if options.push_to_hub:
        errors += token_errors(options.push_to_hub)
    if errors:
        raise UserError(*errors)
    return options
