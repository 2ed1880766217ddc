"""What `--teacher_path` and `--student_path` may be, checked without loading a model. No torch.

| spec | model |
|---|---|
| `scratch:4x256` | randomly initialized: 4 layers, hidden size 256 |
| `teacher:2`, `teacher:0,5` | layers of the fine-tuned teacher (student only) |
| hub name, directory | pretrained weights and tokenizer |
"""

import re
from pathlib import Path

from compression_config import PIPELINES, Options
from encoders.family_table import check_family
from encoders.model_files import (
    UnusableModel,
    check_model_files,
    check_quantization,
    read_model_config,
)
from runtime.errors import ErrorCollector, UserError

SCRATCH_SPEC = re.compile(r"scratch:(\d+)x(\d+)")
TEACHER_SPEC = re.compile(r"teacher:(\d+(?:,\d+)*)")
HEAD_SIZE = 64


def is_scratch(spec: str) -> bool:
    """Whether `spec` asks for randomly initialized encoder weights."""
    return bool(SCRATCH_SPEC.fullmatch(spec))


def scratch_config(spec: str) -> dict[str, int]:
    """The config entries of `scratch:LAYERSxHIDDEN`: heads of 64, feed-forward width 4 * HIDDEN.

    UserError if the shape is impossible.
    """
    layers, hidden = (int(number) for number in SCRATCH_SPEC.fullmatch(spec).groups())
    if layers < 1 or hidden < HEAD_SIZE or hidden % HEAD_SIZE:
        raise UserError(
            f"{spec} must have at least one layer and a width that is a multiple of {HEAD_SIZE}"
        )
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // HEAD_SIZE,
        "intermediate_size": 4 * hidden,
    }


def spaced_layers(count: int, available: int) -> list[int]:
    """Ids of `count` evenly spaced layers, first and last included: 3 of 6 -> [0, 2, 5].

    A single layer is the last one.
    """
    if count == 1:
        return [available - 1]
    return [round(i * (available - 1) / (count - 1)) for i in range(count)]


def teacher_layer_ids(spec: str, available: int) -> list[int]:
    """The layer ids that `teacher:N` or `teacher:0,2,5` specifies.

    UserError if the teacher, which has `available` layers, lacks one of them.
    """
    numbers = [int(number) for number in TEACHER_SPEC.fullmatch(spec)[1].split(",")]
    if len(numbers) == 1:
        count = numbers[0]
        if not 1 <= count <= available:
            raise UserError(f"--student_path is {spec}, but the teacher has {available} layers")
        return spaced_layers(count, available)
    if max(numbers) >= available or numbers != sorted(set(numbers)):
        raise UserError(
            f"--student_path is {spec}, but must list teacher layers in ascending order, from 0 to "
            f"{available - 1}"
        )
    return numbers


def check_directory(spec: str, flag: str) -> None:
    """Refuse a directory that is not a full-precision model of a supported family, with a
    tokenizer."""
    directory = Path(spec)
    try:
        config = read_model_config(directory)
        check_family(config)
        check_quantization(config)
        check_model_files(directory)
    except UnusableModel as error:
        raise UserError(f"{flag} is {spec}, but {error}") from None
    except OSError as error:
        raise UserError(f"{flag} is {spec}, but it cannot be read: {error.strerror}") from None


def is_on_disk(spec: str, flag: str) -> bool:
    """Whether `spec` is a path that exists; UserError if the system cannot tell."""
    try:
        return Path(spec).exists()
    except OSError as error:
        raise UserError(f"{flag} is {spec}, but it cannot be read: {error.strerror}") from None


def check_spec(spec: str, flag: str) -> None:
    """Refuse a spec whose syntax is wrong, or a local directory that is not a usable model."""
    if spec.startswith("scratch:"):
        if not is_scratch(spec):
            raise UserError(
                f"{flag} is {spec}, but must read scratch:LAYERSxHIDDEN, such as scratch:4x256"
            )
        scratch_config(spec)
    elif spec.startswith("teacher:"):
        if flag != "--student_path" or not TEACHER_SPEC.fullmatch(spec):
            raise UserError(
                f"{flag} is {spec}, but only --student_path takes teacher:N or teacher:0,2,5"
            )
    elif is_on_disk(spec, flag):
        check_directory(spec, flag)
    elif Path(spec).is_absolute() or spec.count("/") > 1:  # not a hub name
        raise UserError(f"{flag} is {spec}, but there is no such directory")


def check_specs(runs: list[Options]) -> None:
    """Raise UserError with everything that is wrong with the specs of a teacher and a student."""
    errors = ErrorCollector()
    with errors:
        check_spec(runs[0].teacher_path, "--teacher_path")
    distills = any("distill" in PIPELINES[run.pipeline] for run in runs)
    if distills and runs[0].student_path is not None:
        with errors:
            check_spec(runs[0].student_path, "--student_path")
    errors.raise_if_any()
