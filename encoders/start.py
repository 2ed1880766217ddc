"""The initial model of a teacher or student, as `--teacher_path` or `--student_path` specifies it.

| spec | model |
|---|---|
| `scratch:4x256` | randomly initialized, own tokenizer: `encoders/scratch.py` |
| `teacher:2`, `teacher:0,5` | layers of the fine-tuned teacher (student only) |
| hub name, directory | pretrained weights and tokenizer: `encoders/pretrained.py` |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from encoders.families import encoder_layers, keep_layers_, position_limit, query_key_value
from encoders.pretrained import load_pretrained, load_tokenizer, model_without_weights, read_config
from encoders.scratch import scratch_model, train_wordpiece
from encoders.specs import TEACHER_SPEC, check_spec, is_scratch, scratch_config, teacher_layer_ids
from runtime.distributed import is_main_process
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.finite import TRAINING_ADVICE, check_weights
from task import Task

LOADING_ARGUMENTS = ("is_local", "local_files_only")  # of a tokenizer; transformers saves them

NEW_TOKENIZER_CLASS = "TokenizersBackend"  # transformers 5 renamed PreTrainedTokenizerFast

# Initial models


def start_tokenizer(
    spec: str, flag: str, texts: Sequence[str], max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or directory, or for `scratch:LxH` one trained on `texts`."""
    if is_scratch(spec):
        return train_wordpiece(texts, max_length)
    return load_tokenizer(spec, flag)


def start_teacher(
    spec: str, task: Task, texts: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The initial teacher with a head for `task`; `scratch:LxH` trains its tokenizer on `texts`."""
    if is_scratch(spec):
        return scratch_model(spec, task, texts, max_length)
    return load_pretrained(spec, "--teacher_path", task, max_length)


def start_student(
    spec: str,
    teacher_dir: Path,
    task: Task,
    texts: Sequence[str],
    max_length: int,
    *,
    own_tokenizer: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The initial student with a head for `task`.

    `teacher:N` takes its layers, embeddings, head and tokenizer from the teacher in `teacher_dir`.
    `scratch:LxH` trains a tokenizer on `texts`, or uses the teacher's if `own_tokenizer` is False.
    """
    if is_scratch(spec):
        tokenizer = None
        if not own_tokenizer:
            tokenizer = load_tokenizer(str(teacher_dir), "--teacher_path")
        return scratch_model(spec, task, texts, max_length, tokenizer)
    if not TEACHER_SPEC.fullmatch(spec):
        return load_pretrained(spec, "--student_path", task, max_length)
    model, tokenizer = load_pretrained(str(teacher_dir), "--teacher_path", task, max_length)
    keep_layers_(model, teacher_layer_ids(spec, model.config.num_hidden_layers))
    return model, tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path) -> Path:
    """Write a plain Hugging Face checkpoint in the main process; returns `out_dir`.

    UserError if a weight is not finite.
    """
    check_weights(model.state_dict(), "the model", TRAINING_ADVICE)
    if is_main_process():
        model.save_pretrained(out_dir)
        tokenizer.save_pretrained(out_dir)
        make_portable(out_dir / "tokenizer_config.json", tokenizer.model_input_names)
    return out_dir


def make_portable(path: Path, input_names: list[str]) -> None:
    """Remove from a tokenizer_config.json how the tokenizer was loaded, and a new class name.

    The bytes would depend on the directory and on whether the hub was reachable, and transformers
    4 does not know the class and has other default names of the model's inputs.
    """
    config = read_json(path)
    config["model_input_names"] = input_names
    for name in LOADING_ARGUMENTS:
        config.pop(name, None)
    if config.get("tokenizer_class") == NEW_TOKENIZER_CLASS:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name in every version
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    atomic_write(path, f"{text}\n")


# Facts about a model before it is loaded


def check_start(
    spec: str, flag: str, task: Task, max_length: int, *, is_finished: bool = False
) -> None:
    """Refuse a spec that cannot be loaded, or whose model cannot read `max_length` tokens.

    Pretrained weights are loaded once, so that nothing is trained before they are known to fit;
    `is_finished` requires a head for the task's labels. The layers of `teacher:N` are checked
    elsewhere, because the teacher is needed for that.
    """
    check_spec(spec, flag)
    if is_scratch(spec) or TEACHER_SPEC.fullmatch(spec):
        return
    limit = position_limit(read_config(spec, flag))
    if limit < max_length:
        raise UserError(f"--max_length is {max_length}, but {spec} reads at most {limit} tokens")
    load_pretrained(spec, flag, task, max_length, is_finished=is_finished)


def config_value(spec: str, flag: str, name: str) -> int:
    """An entry of the model's config, such as `num_hidden_layers`."""
    if is_scratch(spec):
        return scratch_config(spec)[name]
    return getattr(read_config(spec, flag), name)


def empty_encoder(spec: str, flag: str) -> PreTrainedModel:
    """The model of a hub name or directory on the meta device, without weights."""
    return model_without_weights(read_config(spec, flag))


def has_known_queries(spec: str, flag: str) -> bool:
    """Whether the names of the model's query, key and value Linears are known."""
    if is_scratch(spec):
        return True
    _, layers = encoder_layers(empty_encoder(spec, flag))
    return bool(query_key_value(layers[0]))
