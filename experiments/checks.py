"""TODO."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks

import export
import quantization
from compression_config import PIPELINES, Options, UserError, check_installed
from corpus.columns import LabelledCorpus, read_corpus
from encoders.families import ffn_width
from encoders.scratch import is_fresh
from encoders.start import (
    check_start,
    config_value,
    empty_encoder,
    has_known_queries,
    read_config,
    start_tokenizer,
    teacher_layer_ids,
)
from encoders.vocabulary import plain_backend
from losses import KD_LOSSES
from pruning import ffn_linears, target_width
from runtime import cpu
from runtime.distributed import process_count
from task import Task

log = logging.getLogger(__name__)


def resolve_device(device: str) -> str:
    """`auto` as the device that is there; UserError where cuda is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as bf16 where the hardware computes in it, fp16 on older GPUs, fp32 elsewhere."""
    if precision == "fp16" and device == "cpu":
        raise UserError(
            "--precision is fp16, but training in fp16 needs a GPU; use auto, fp32 or bf16"
        )
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    return "fp32" if {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu.instruction_sets()) else "bf16"


def check_reporting(to: str) -> None:
    """UserError where `--report_to` names an integration that the Trainer cannot use here."""
    for callback in get_reporting_integration_callbacks(to):
        try:
            callback()
        except Exception as error:  # ImportError, RuntimeError and kinds of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--report_to is {to}, but {reason}") from None


def check_finished_teacher(spec: str, task: Task) -> None:
    """Refuse `--teacher_epochs 0` for a model that was not fine-tuned on these labels."""
    config = None if spec.startswith("scratch:") else read_config(spec, "--teacher_path")
    architecture = (getattr(config, "architectures", None) or ["fresh"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise UserError(
            f"--teacher_epochs is 0, but {spec} has no fine-tuned head ({architecture})"
        )
    labels = tuple(config.id2label[i] for i in sorted(config.id2label))
    if labels != task.labels:
        raise UserError(
            f"--teacher_epochs is 0, but {spec} predicts {', '.join(labels)} and the file holds "
            f"{', '.join(task.labels)}"
        )


def check_tunable(task: Task) -> None:
    """Refuse three or more classes, where one threshold decides nothing."""
    if len(task.labels) > 2 and not task.multi_label:
        raise UserError(
            f"--tune_threshold is given, but the file has {len(task.labels)} classes; it needs two, or "
            "several 0/1 columns"
        )


def collect_errors(*checks: Callable[[], Any]) -> None:
    """Run every check, then raise one UserError with the lines of all that failed."""
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            lines += error.lines
    if lines:
        raise UserError(*dict.fromkeys(lines))


def check_processes(options: Options) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    if options.batch % (process_count() * options.accumulate):
        raise UserError(
            f"--batch is {options.batch}, but must be a multiple of {process_count()} (processes) times "
            f"{options.accumulate} (--accumulate)"
        )


def check_student(options: Options) -> None:
    """Refuse a student that cannot be built from this teacher."""
    check_start(options.student_path, "--student_path", options.max_length)
    if options.student_path.startswith("teacher:"):
        teacher_layer_ids(
            options.student_path,
            config_value(options.teacher_path, "--teacher_path", "num_hidden_layers"),
        )
    if options.kd_method != "logit":
        check_states(options)
    if options.student_tokenizer == "teacher" and not is_fresh(options.student_path):
        raise UserError(
            f"--student_tokenizer is teacher, but --student_path {options.student_path} brings its own; "
            "only a scratch:LxH student can take another"
        )


def check_states(options: Options) -> None:
    """Refuse to compare states that are not known, of different tokens, or of different numbers of heads."""
    compared, of_teacher = KD_LOSSES[options.kd_method], options.student_path.startswith("teacher:")
    for flag in ("teacher_path",) if of_teacher else ("teacher_path", "student_path"):
        if {"attention", "relation"} & set(compared) and not has_known_queries(
            getattr(options, flag), f"--{flag}"
        ):
            raise UserError(
                f"--kd_method is {options.kd_method}, but which layers of --{flag} "
                f"{getattr(options, flag)} make queries and keys is not known; use hidden or logit"
            )
    if of_teacher:
        return
    if not same_tokens(options):
        raise UserError(
            f"--kd_method is {options.kd_method}, which compares token by token, but teacher and student "
            "cut texts into different tokens; use logit, a --student_path teacher:N, or scratch:LxH with "
            "--student_tokenizer teacher"
        )
    ours, theirs = (
        config_value(getattr(options, flag), f"--{flag}", "num_attention_heads")
        for flag in ("student_path", "teacher_path")
    )
    if "attention" in compared and ours != theirs:
        raise UserError(
            f"--kd_method is {options.kd_method}, which compares head by head, but the student has {ours} "
            f"heads and the teacher {theirs}; use hidden or relation"
        )


def same_tokens(options: Options) -> bool:
    """Whether a student that is not made of the teacher's layers reads the teacher's tokens."""
    if is_fresh(options.student_path):
        return options.student_tokenizer == "teacher"
    if is_fresh(options.teacher_path):
        return False
    ours, theirs = (
        getattr(
            start_tokenizer(getattr(options, flag), f"--{flag}", [], options.max_length),
            "backend_tokenizer",
            None,
        )
        for flag in ("student_path", "teacher_path")
    )
    if ours is None or theirs is None:  # not of the tokenizers library
        return False
    for tokenizer in (ours, theirs):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return ours.to_str() == theirs.to_str()


def check_shapes(options: Options) -> None:
    """Refuse to trim a tokenizer of another kind, or to narrow a feed-forward block that is narrower already."""
    of_student = "distill" in PIPELINES[options.pipeline] and not options.student_path.startswith(
        "teacher:"
    )
    flag = "student_path" if of_student else "teacher_path"
    spec = getattr(options, flag)
    if spec.startswith("scratch:") and not is_fresh(spec):
        return  # refused already
    cut_by = "teacher_path" if options.student_tokenizer == "teacher" else flag
    if options.trim_vocab != "none" and not is_fresh(getattr(options, cut_by)):
        plain_backend(
            start_tokenizer(getattr(options, cut_by), f"--{cut_by}", [], options.max_length)
        )
    if options.ffn_width is None:
        return
    if is_fresh(spec):
        whole = config_value(spec, f"--{flag}", "intermediate_size")
    else:
        model = empty_encoder(spec, f"--{flag}")
        ffn_linears(model)
        whole = ffn_width(model.config)
    if (width := target_width(options.ffn_width, whole)) > whole:
        raise UserError(f"--ffn_width is {width}, but {spec} has {whole} neurons a layer")


def distilling_run(runs: list[Options]) -> Options:
    """The first run that distils, else the first."""
    return max(runs, key=lambda one: "distill" in PIPELINES[one.pipeline])


def check_runs(runs: list[Options]) -> LabelledCorpus:
    """The labelled file of runs that differ in their pipelines; refuses, all at once, what would fail after hours of
    training."""
    options, stages = (
        distilling_run(runs),
        {stage for one in runs for stage in PIPELINES[one.pipeline]},
    )
    shaped = {("distill" in PIPELINES[one.pipeline], one.ffn_width): one for one in runs}
    checks = [
        lambda: check_processes(options),
        lambda: check_start(options.teacher_path, "--teacher_path", options.max_length),
        lambda: resolve_precision(options.precision, resolve_device(options.device)),
    ]
    if "distill" in stages:
        checks.append(lambda: check_student(options))
    checks += [lambda one=one: check_shapes(one) for one in shaped.values()]
    checks.append(lambda: check_reporting(options.report_to))
    if "quantize" in stages:
        checks.append(
            lambda: check_installed(
                "--quant_method",
                options.quant_method,
                quantization.REQUIREMENTS[options.quant_method],
            )
        )
    checks += [
        lambda bits=bits: check_installed("--qat", bits, quantization.QAT_REQUIREMENTS[bits])
        for bits in {one.qat for one in runs}
    ]
    checks.append(
        lambda: check_installed(
            "--export", options.export, export.required_packages(options.export)
        )
    )
    found: list[LabelledCorpus] = []
    checks.append(lambda: found.append(read_corpus(options)))
    collect_errors(*checks)
    (labelled,) = found
    if options.teacher_epochs == 0:
        check_finished_teacher(options.teacher_path, labelled.task)
    if options.tune_threshold:
        check_tunable(labelled.task)
    return labelled


def with_default_student(runs: list[Options]) -> list[Options]:
    """The runs with a student; says where one is given in vain."""
    first = distilling_run(runs)
    if first.student_path is None:
        return [replace(one, student_path="teacher:2") for one in runs]
    if "distill" not in PIPELINES[first.pipeline]:
        log.warning(
            "--student_path %s is not used: %s has no distillation",
            first.student_path,
            " or ".join(one.pipeline for one in runs),
        )
    return runs


def resolve_defaults(options: Options, columns: dict[str, Any]) -> Options:
    """Every `auto` and every unset default replaced by what it stands for."""
    device = resolve_device(options.device)
    student_is_fresh = is_fresh(options.student_path) or (
        is_fresh(options.teacher_path) and options.student_path.startswith("teacher:")
    )
    learner_is_fresh = (
        student_is_fresh
        if "distill" in PIPELINES[options.pipeline]
        else is_fresh(options.teacher_path)
    )
    return replace(
        options,
        **columns,
        device=device,
        precision=resolve_precision(options.precision, device),
        teacher_lr=options.teacher_lr or (5e-4 if is_fresh(options.teacher_path) else 5e-5),
        lr=options.lr or (5e-4 if learner_is_fresh else 5e-5),
    )
