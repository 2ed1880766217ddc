"""Stage `distill`: a student learns from the teacher's outputs, and from its states where `--kd_method` asks for them.

The teacher's logits are made once, lie on disk, and travel as a column joined by row id. Only the losses of states run
the teacher live, beside the student.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from compression_config import Options
from data import labelled_rows
from encoders.families import encoder_layers, query_key_value
from encoders.start import save_model, start_student
from engines.engine import load_engine, predict_logits
from losses import KD_LOSSES, States, state_loss
from runtime.distributed import process_count, process_index
from task import Task
from training import soft_target_loss, train_

log = logging.getLogger(__name__)

WINDOW = 16_384  # rows whose outputs are in memory at once; sorted by length within


def write_teacher_outputs(
    teacher_dir: Path, split: Dataset, out_dir: Path, options: Options
) -> None:
    """Write each row's `id` and the teacher's `teacher_logits` [labels] as an Arrow stream, a window at a time; every
    process of a run writes its share."""
    engine = load_engine(teacher_dir, "torch", options.max_length, device=options.device)
    schema = pa.schema({"id": pa.int64(), "teacher_logits": pa.list_(pa.float32())})
    share = split.shard(process_count(), process_index(), contiguous=True)
    with pa.ipc.new_stream(out_dir / f"logits-{process_index()}.arrow", schema) as stream:
        for start in range(0, len(share), WINDOW):
            rows = share[start : start + WINDOW]
            of_all = f" of {len(share)}" if len(share) > WINDOW else ""
            what = f"teacher outputs, rows {start + 1} to {start + len(rows['id'])}{of_all}"
            logits = predict_logits(engine, rows["text"], 2 * options.batch, what)
            stream.write_batch(
                pa.record_batch(
                    [pa.array(rows["id"]), pa.array(list(logits), schema.types[1])], schema
                )
            )


def with_teacher_logits(split: Dataset, outputs_dir: Path) -> Dataset:
    """The split with its column `teacher_logits`, joined by row id; it stays on disk."""
    parts = [Dataset.from_file(str(path)) for path in sorted(outputs_dir.glob("logits-*.arrow"))]
    outputs = concatenate_datasets(parts)
    ours, theirs = (
        rows.select_columns("id").with_format("arrow")[:]["id"] for rows in (split, outputs)
    )
    joined = outputs.select(pc.index_in(ours, theirs).to_numpy()).select_columns("teacher_logits")
    return concatenate_datasets([split.select_columns(["id", "text", "label"]), joined], axis=1)


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher's layer (from 0) for each of the student's: evenly spaced, the last with the last."""
    return [
        max(round((i + 1) * teacher_layers / student_layers) - 1, 0) for i in range(student_layers)
    ]


class StateRecorder:
    """Keeps, by hooks, what every layer of a model computes in a forward pass.

    `hidden` holds the layers' outputs [rows, tokens, width], after `project` where it is given; `parts` the queries,
    keys and values of each layer, alike. A layer that is shared (ALBERT) counts as often as it is called.
    """

    def __init__(self, model: PreTrainedModel, project: nn.ModuleList | None = None):
        self.heads, self.project = model.config.num_attention_heads, project
        self.hidden: list[Tensor] = []
        self.parts: tuple[list[Tensor], ...] = ([], [], [])
        model.register_forward_pre_hook(self.forget)
        for layer in encoder_layers(model)[1]:
            layer.register_forward_hook(self.keep_hidden)
            for linear, kept in zip(
                query_key_value(layer), self.parts, strict=False
            ):  # none where none are known
                linear.register_forward_hook(partial(self.keep, kept))

    def forget(self, *_) -> None:
        """A new forward pass begins."""
        for kept in (self.hidden, *self.parts):
            kept.clear()

    def keep(self, kept: list[Tensor], _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        """Keep what a Linear gave."""
        kept.append(output)

    def keep_hidden(self, _module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        """Keep what a layer gave; the projection belongs to the forward pass, as distributed training needs."""
        output = output[0] if isinstance(output, tuple) else output
        self.hidden.append(self.project[len(self.hidden)](output) if self.project else output)

    def states(self, wanted: Iterable[str], layers: list[int], relation_heads: int) -> States:
        """What the losses that are `wanted` compare: `layers`, and the relations of the last layer."""
        hidden = [self.hidden[layer] for layer in layers] if "hidden" in wanted else []
        scores = [self.scores(layer) for layer in layers] if "attention" in wanted else []
        relations = (
            [split_heads(kept[-1], relation_heads) for kept in self.parts]
            if "relation" in wanted
            else []
        )
        return States(hidden, scores, relations)

    def scores(self, layer: int) -> Tensor:
        """A layer's attention before softmax and mask."""
        queries, keys = (split_heads(kept[layer], self.heads) for kept in self.parts[:2])
        return queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5


def split_heads(vectors: Tensor, heads: int) -> Tensor:
    """[rows, tokens, width] as [rows, heads, tokens, width / heads]."""
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)


def live_teacher_loss(
    student: PreTrainedModel, teacher_dir: Path, weights: dict[str, float], device: str
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The losses of states as a function of the batch that the student has just run on.

    Where the widths differ the student gains a trainable `kd_project`, one Linear a layer, until it is taken off.
    """
    teacher = (
        AutoModelForSequenceClassification.from_pretrained(teacher_dir)
        .eval()
        .requires_grad_(False)
        .to(device)
    )
    ours, theirs = student.config, teacher.config
    own, paired = (
        list(range(ours.num_hidden_layers)),
        layer_map(ours.num_hidden_layers, theirs.num_hidden_layers),
    )
    if {"hidden", "attention"} & set(weights):
        log.info(
            "the student's layers learn from layers %s of the teacher", ", ".join(map(str, paired))
        )
    if "hidden" in weights and ours.hidden_size != theirs.hidden_size:
        student.kd_project = nn.ModuleList(
            nn.Linear(ours.hidden_size, theirs.hidden_size) for _ in paired
        )
    relation_heads = math.gcd(theirs.num_attention_heads, ours.hidden_size)
    watched, watching = (
        StateRecorder(student, getattr(student, "kd_project", None)),
        StateRecorder(teacher),
    )

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            teacher(**batch)
        learnt, taught = (
            watched.states(weights, own, relation_heads),
            watching.states(weights, paired, relation_heads),
        )
        return state_loss(learnt, taught, batch["attention_mask"], weights)

    return loss


def distill(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Train what `--student_path` names on the `teacher_logits` and labels of the training rows; on labels alone
    where `kd_alpha` is 0."""
    set_seed(options.seed)
    student, tokenizer = start_student(
        options.student_path,
        model_in,
        task,
        labelled_rows(splits["train"])[:]["text"],
        options.max_length,
        own_tokenizer=options.student_tokenizer == "own",
    )
    of_states = {
        name: getattr(options, f"kd_{name}_weight") for name in KD_LOSSES[options.kd_method]
    }
    live = live_teacher_loss(student, model_in, of_states, options.device) if of_states else None
    train_(
        student,
        tokenizer,
        splits,
        out_dir,
        options,
        epochs=options.epochs,
        lr=options.lr,
        loss=soft_target_loss(splits, task, options),
        live=live,
    )
    if hasattr(student, "kd_project"):
        del student.kd_project
    return save_model(student, tokenizer, out_dir)


def build_student(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `start`: what `--student_path` names, as it is before any training."""
    set_seed(options.seed)
    texts = labelled_rows(splits["train"])[:]["text"]
    student, tokenizer = start_student(
        options.student_path,
        model_in,
        task,
        texts,
        options.max_length,
        own_tokenizer=options.student_tokenizer == "own",
    )
    return save_model(student, tokenizer, out_dir)
