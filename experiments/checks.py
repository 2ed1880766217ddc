"""Checks of a run before anything is trained, and the defaults that depend on models, data and
hardware."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks

import export
import quantization
from compression_config import PIPELINES, Options
from encoders.families import ffn_width
from encoders.pretrained import load_tokenizer
from encoders.specs import is_scratch, teacher_layer_ids
from encoders.start import check_start, config_value, empty_encoder, has_known_queries
from encoders.vocabulary import plain_backend
from losses import KD_LOSSES
from pruning import ffn_linears, target_width
from runtime import cpu
from runtime.distributed import process_count
from runtime.errors import ErrorCollector, UserError, check_installed, first_line
from task import Task

log = logging.getLogger(__name__)

DEFAULT_STUDENT = "teacher:2"
PRETRAINED_LR = 5e-5
SCRATCH_LR = 5e-4
BF16_GPU_CAPABILITY = (8, 0)
BF16_CPU_SETS = {"avx512_bf16", "amx_bf16"}


def resolve_device(device: str) -> str:
    """`auto` as the available device; UserError if cuda is asked for and not available."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device")
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as bf16 if the hardware supports it, fp16 on older GPUs, else fp32."""
    if precision == "fp16" and device == "cpu":
        raise UserError(
            "--precision is fp16, but training in fp16 needs a GPU; use auto, fp32 or bf16"
        )
    if precision != "auto":
        return precision
    if device == "cuda":
        supports_bf16 = torch.cuda.get_device_capability() >= BF16_GPU_CAPABILITY
        return "bf16" if supports_bf16 else "fp16"
    supports_bf16 = not BF16_CPU_SETS.isdisjoint(cpu.instruction_sets())
    return "bf16" if supports_bf16 else "fp32"


def check_reporting(tracker: str) -> None:
    """Raise UserError if `--report_to` names a tracker that the Trainer cannot use here."""
    for callback in get_reporting_integration_callbacks(tracker):
        try:
            callback()
        except Exception as error:  # ImportError, RuntimeError and the trackers' own kinds
            raise UserError(f"--report_to is {tracker}, but {first_line(error)}") from None


def check_teacher(options: Options, task: Task) -> None:
    """Refuse a teacher that cannot be loaded; `--teacher_epochs 0` needs a fine-tuned one."""
    spec = options.teacher_path
    is_finished = options.teacher_epochs == 0
    if is_finished and is_scratch(spec):
        raise UserError(
            f"--teacher_epochs is 0, but {spec} has no fine-tuned head (random weights)"
        )
    check_start(spec, "--teacher_path", task, options.max_length, is_finished=is_finished)


def check_tunable(task: Task) -> None:
    """Refuse `--tune_threshold` for three or more classes, which are not decided by a threshold."""
    if len(task.labels) > 2 and not task.multi_label:
        raise UserError(
            f"--tune_threshold is given, but the file has {len(task.labels)} classes; it needs "
            "two, or several 0/1 columns"
        )


def check_processes(options: Options) -> None:
    """Refuse a batch that cannot be divided evenly."""
    if options.batch % (process_count() * options.accumulate):
        raise UserError(
            f"--batch is {options.batch}, but must be a multiple of {process_count()} (processes) "
            f"times {options.accumulate} (--accumulate)"
        )


def check_student(options: Options, task: Task) -> None:
    """Refuse a student that cannot be built from this teacher."""
    check_start(options.student_path, "--student_path", task, options.max_length)
    if options.student_path.startswith("teacher:"):
        layers = config_value(options.teacher_path, "--teacher_path", "num_hidden_layers")
        teacher_layer_ids(options.student_path, layers)
    if options.kd_method != "logit":
        check_state_losses(options)
    if options.student_tokenizer == "teacher" and not is_scratch(options.student_path):
        raise UserError(
            f"--student_tokenizer is teacher, but --student_path {options.student_path} has its "
            "own; only a scratch:LxH student can use another"
        )


def check_state_losses(options: Options) -> None:
    """Refuse `--kd_method` if the states of teacher and student cannot be compared."""
    losses = KD_LOSSES[options.kd_method]
    made_of_teacher = options.student_path.startswith("teacher:")
    flags = ["teacher_path"] if made_of_teacher else ["teacher_path", "student_path"]
    if "attention" in losses or "relation" in losses:
        for flag in flags:
            check_queries_known(options, flag)
    if made_of_teacher:
        return
    if not has_same_tokenizer(options):
        raise UserError(
            f"--kd_method is {options.kd_method}, which compares token by token, but teacher and "
            "student tokenize differently; use logit, a --student_path teacher:N, or scratch:LxH "
            "with --student_tokenizer teacher"
        )
    student_heads = config_value(options.student_path, "--student_path", "num_attention_heads")
    teacher_heads = config_value(options.teacher_path, "--teacher_path", "num_attention_heads")
    if "attention" in losses and student_heads != teacher_heads:
        raise UserError(
            f"--kd_method is {options.kd_method}, which compares head by head, but the student has "
            f"{student_heads} heads and the teacher {teacher_heads}; use hidden or relation"
        )


def check_queries_known(options: Options, flag: str) -> None:
    """Refuse an encoder whose query and key layers are not known."""
    spec = getattr(options, flag)
    if not has_known_queries(spec, f"--{flag}"):
        raise UserError(
            f"--kd_method is {options.kd_method}, but the query and key layers of --{flag} {spec} "
            "are not known; use hidden or logit"
        )


def has_same_tokenizer(options: Options) -> bool:
    """Whether a student that is not made of the teacher's layers has the teacher's tokenizer."""
    if is_scratch(options.student_path):
        return options.student_tokenizer == "teacher"
    if is_scratch(options.teacher_path):
        return False
    serialized = []
    for flag in ("student_path", "teacher_path"):
        tokenizer = tokenizer_of(options, flag)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:  # not of the tokenizers library
            return False
        backend.no_truncation()
        backend.no_padding()
        serialized.append(backend.to_str())
    return serialized[0] == serialized[1]


def tokenizer_of(options: Options, flag: str) -> Any:
    """The tokenizer of the pretrained model that `flag` names."""
    return load_tokenizer(getattr(options, flag), f"--{flag}")


def check_shapes(options: Options) -> None:
    """Refuse a vocabulary that cannot be trimmed, or a feed-forward width above the model's own."""
    distills = "distill" in PIPELINES[options.pipeline]
    is_own_student = distills and not options.student_path.startswith("teacher:")
    flag = "student_path" if is_own_student else "teacher_path"
    spec = getattr(options, flag)
    if spec.startswith("scratch:") and not is_scratch(spec):
        return  # check_start refuses it
    tokenizer_flag = "teacher_path" if options.student_tokenizer == "teacher" else flag
    if options.trim_vocab != "none" and not is_scratch(getattr(options, tokenizer_flag)):
        plain_backend(tokenizer_of(options, tokenizer_flag))
    if options.ffn_width is None:
        return
    if is_scratch(spec):
        own_width = config_value(spec, f"--{flag}", "intermediate_size")
    else:
        model = empty_encoder(spec, f"--{flag}")
        ffn_linears(model)
        own_width = ffn_width(model.config)
    width = target_width(options.ffn_width, own_width)
    if width > own_width:
        raise UserError(f"--ffn_width is {width}, but {spec} has {own_width} neurons per layer")


def distilling_run(runs: list[Options]) -> Options:
    """The first run that distills, else the first."""
    for run in runs:
        if "distill" in PIPELINES[run.pipeline]:
            return run
    return runs[0]


def check_runs(runs: list[Options], task: Task) -> None:
    """Report, in one UserError, everything that would fail after hours of training; the runs
    differ only in their pipelines."""
    options = distilling_run(runs)
    stages = {stage for run in runs for stage in PIPELINES[run.pipeline]}
    errors = ErrorCollector()
    with errors:
        check_processes(options)
    with errors:
        check_teacher(options, task)
    with errors:
        resolve_precision(options.precision, resolve_device(options.device))
    if "distill" in stages:
        with errors:
            check_student(options, task)
    for run in runs:
        with errors:
            check_shapes(run)
    with errors:
        check_reporting(options.report_to)
    if "quantize" in stages:
        with errors:
            packages = quantization.REQUIREMENTS[options.quant_method]
            check_installed("--quant_method", options.quant_method, packages)
    for bits in {run.qat for run in runs}:
        with errors:
            check_installed("--qat", bits, quantization.QAT_REQUIREMENTS[bits])
    with errors:
        packages = export.required_packages(options.export)
        check_installed("--export", options.export, packages)
    errors.raise_if_any()

    if options.tune_threshold:
        check_tunable(task)


def with_default_student(runs: list[Options]) -> list[Options]:
    """The runs with a student; warns if --student_path is ignored."""
    first = distilling_run(runs)
    if first.student_path is None:
        return [replace(run, student_path=DEFAULT_STUDENT) for run in runs]
    if "distill" not in PIPELINES[first.pipeline]:
        pipelines = " or ".join(run.pipeline for run in runs)
        log.warning(
            "--student_path %s is ignored: %s has no distillation", first.student_path, pipelines
        )
    return runs


def default_lr(*, is_scratch: bool) -> float:
    """The default learning rate of a model with random or pretrained weights."""
    return SCRATCH_LR if is_scratch else PRETRAINED_LR


def resolve_defaults(options: Options, columns: dict[str, Any]) -> Options:
    """The options with every `auto` and every unset default replaced by its value."""
    device = resolve_device(options.device)
    teacher_is_scratch = is_scratch(options.teacher_path)
    learner_is_scratch = teacher_is_scratch
    distills = "distill" in PIPELINES[options.pipeline]
    if distills and not options.student_path.startswith("teacher:"):
        learner_is_scratch = is_scratch(options.student_path)
    return replace(
        options,
        **columns,
        device=device,
        precision=resolve_precision(options.precision, device),
        teacher_lr=options.teacher_lr or default_lr(is_scratch=teacher_is_scratch),
        lr=options.lr or default_lr(is_scratch=learner_is_scratch),
    )
