"""Stages `distill` and `start`: a student learns from the outputs of the teacher.

The teacher's logits are computed once, stored on disk, and joined to the rows by row id. Only the
losses on states (`--kd_method` other than `logit`) run the teacher during the student's training.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from compression_config import Options
from data import labeled_rows
from encoders.families import encoder_layers, query_key_value
from encoders.saved_models import load_saved_model
from encoders.start import save_model, start_student
from engines.engine import load_engine, predict_logits
from losses import KD_LOSSES, States, state_loss
from runtime.distributed import process_count, process_index, raise_everywhere
from runtime.errors import UserError
from runtime.finite import check_logits
from task import Task
from trainer import training_settings
from training import stage_loss, train_

log = logging.getLogger(__name__)

WINDOW_ROWS = 16_384  # rows whose logits are in memory at once; batches are formed within
TEACHER_ADVICE = "use another --teacher_path, or lower --teacher_lr"
OUTPUTS_SCHEMA = pa.schema({"id": pa.int64(), "teacher_logits": pa.list_(pa.float32())})


def write_teacher_outputs(
    teacher_dir: Path, split: Dataset, out_dir: Path, *, max_length: int, batch: int, device: str
) -> None:
    """Write the `id` and the `teacher_logits` [labels] of every row as Arrow streams.

    Each process writes its shard, `logits-<process index>.arrow`. Inference runs on `2 * batch`
    texts at once, because it needs less memory than training. UserError if a logit of any process
    is not finite.
    """
    engine = load_engine(teacher_dir, "torch", max_length, device=device)
    shard = split.shard(process_count(), process_index(), contiguous=True)
    path = out_dir / f"logits-{process_index()}.arrow"
    problem = None
    with pa.ipc.new_stream(path, OUTPUTS_SCHEMA) as stream:
        for start in range(0, len(shard), WINDOW_ROWS):
            window = shard[start : start + WINDOW_ROWS]
            end = start + len(window["id"])
            description = f"teacher outputs, rows {start + 1} to {end} of {len(shard)}"
            logits = predict_logits(engine, window["text"], 2 * batch, description)
            try:
                check_logits(logits, f"the teacher in {teacher_dir}", TEACHER_ADVICE)
            except UserError as error:
                problem = error
                break
            columns = {"id": window["id"], "teacher_logits": list(logits)}
            stream.write_batch(pa.RecordBatch.from_pydict(columns, OUTPUTS_SCHEMA))
    raise_everywhere(problem)


def row_ids(rows: Dataset) -> pa.ChunkedArray:
    """The ids of the rows."""
    return rows.select_columns("id").with_format("arrow")[:]["id"]


def with_teacher_logits(split: Dataset, outputs_dir: Path) -> Dataset:
    """The rows with a column `teacher_logits`, joined by row id; both stay on disk."""
    paths = sorted(outputs_dir.glob("logits-*.arrow"))
    outputs = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
    positions = pc.index_in(row_ids(split), row_ids(outputs)).to_numpy()
    logits = outputs.select(positions).select_columns("teacher_logits")
    rows = split.select_columns(["id", "text", "label"])
    return concatenate_datasets([rows, logits], axis=1)


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher layer (from 0) that is paired with each student layer: evenly spaced, the last
    with the last."""
    layers = []
    for number in range(1, student_layers + 1):
        layers.append(max(round(number * teacher_layers / student_layers) - 1, 0))
    return layers


def split_heads(vectors: Tensor, heads: int) -> Tensor:
    """[rows, tokens, width] as [rows, heads, tokens, width / heads]."""
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)


class StateRecorder:
    """Records the states of every encoder layer in each forward pass of a model, by hooks.

    `hidden` has the layers' outputs [rows, tokens, width], after the layer's `projection`, if
    given. `queries`, `keys` and `values` [rows, tokens, width] are empty if the family's Linears
    for them are unknown. A shared layer (ALBERT) is recorded once per call.
    """

    def __init__(self, model: PreTrainedModel, projection: nn.ModuleList | None = None):
        self.heads = model.config.num_attention_heads
        self.projection = projection
        self.hidden: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        model.register_forward_pre_hook(self.clear)
        _, layers = encoder_layers(model)
        for layer in layers:
            layer.register_forward_hook(self.record_hidden)
            linears = query_key_value(layer)
            if linears:
                query, key, value = linears
                query.register_forward_hook(partial(self.record, self.queries))
                key.register_forward_hook(partial(self.record, self.keys))
                value.register_forward_hook(partial(self.record, self.values))

    def clear(self, _module: nn.Module, _inputs: tuple) -> None:
        """Delete the states of the previous forward pass."""
        for outputs in (self.hidden, self.queries, self.keys, self.values):
            outputs.clear()

    def record(
        self, outputs: list[Tensor], _module: nn.Module, _inputs: tuple, output: Tensor
    ) -> None:
        """Append the output of a Linear to `outputs`."""
        outputs.append(output)

    def record_hidden(self, _module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        """Append the output of a layer, projected.

        The projection is part of the forward pass, as DistributedDataParallel requires.
        """
        hidden = output[0] if isinstance(output, tuple) else output
        if self.projection is not None:
            hidden = self.projection[len(self.hidden)](hidden)
        self.hidden.append(hidden)

    def states(self, names: tuple[str, ...], layers: list[int], relation_heads: int) -> States:
        """The states that the losses in `names` compare: those of `layers`, and the relations of
        the last layer."""
        hidden = []
        scores = []
        relations = []
        if "hidden" in names:
            hidden = [self.hidden[layer] for layer in layers]
        if "attention" in names:
            scores = [self.attention_scores(layer) for layer in layers]
        if "relation" in names:
            for outputs in (self.queries, self.keys, self.values):
                relations.append(split_heads(outputs[-1], relation_heads))
        return States(hidden, scores, relations)

    def attention_scores(self, layer: int) -> Tensor:
        """Scores of a layer before softmax and mask [rows, heads, tokens, tokens]."""
        queries = split_heads(self.queries[layer], self.heads)
        keys = split_heads(self.keys[layer], self.heads)
        return queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5


class LiveStateLoss:
    """Losses that compare the student's states with the teacher's on the batch just processed.

    A call runs the teacher on the batch. `names` are keys of STATE_LOSSES. If the widths of the
    hidden states differ, the student gets a trainable `kd_project`, one Linear per layer, which
    the caller deletes after training.
    """

    def __init__(
        self, student: PreTrainedModel, teacher_dir: Path, names: tuple[str, ...], device: str
    ):
        self.names = names
        teacher = load_saved_model(teacher_dir)
        self.teacher = teacher.eval().requires_grad_(False).to(device)
        layer_count = student.config.num_hidden_layers
        self.student_layers = list(range(layer_count))
        self.teacher_layers = layer_map(layer_count, teacher.config.num_hidden_layers)
        if "hidden" in names or "attention" in names:
            layers = ", ".join(map(str, self.teacher_layers))
            log.info("the student's layers learn from layers %s of the teacher", layers)
        width = student.config.hidden_size
        teacher_width = teacher.config.hidden_size
        projection = None
        if "hidden" in names and width != teacher_width:
            linears = [nn.Linear(width, teacher_width) for _ in self.student_layers]
            projection = nn.ModuleList(linears)
            student.kd_project = projection
        # the teacher's heads, merged as far as the student's width requires
        self.relation_heads = math.gcd(teacher.config.num_attention_heads, width)
        self.student_states = StateRecorder(student, projection)
        self.teacher_states = StateRecorder(teacher)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the losses on `input_ids` and `attention_mask` [rows, tokens]."""
        with torch.no_grad():
            self.teacher(**batch)
        student = self.student_states.states(self.names, self.student_layers, self.relation_heads)
        teacher = self.teacher_states.states(self.names, self.teacher_layers, self.relation_heads)
        return state_loss(student, teacher, batch["attention_mask"], self.names)


def initial_student(
    teacher_dir: Path, splits: DatasetDict, task: Task, options: Options
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of `--student_path` before any training, with its tokenizer."""
    set_seed(options.seed)
    return start_student(
        options.student_path,
        teacher_dir,
        task,
        labeled_rows(splits["train"])[:]["text"],
        options.max_length,
        own_tokenizer=options.student_tokenizer == "own",
    )


def build_student(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `start`: write the model that `--student_path` names, before any training."""
    student, tokenizer = initial_student(model_in, splits, task, options)
    return save_model(student, tokenizer, out_dir)


def distill(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `distill`: train the student of `--student_path` on the teacher in `model_in`.

    The training rows have labels and `teacher_logits`; with `kd_alpha` 0 only the labels are used.
    """
    student, tokenizer = initial_student(model_in, splits, task, options)
    live_loss = None
    state_losses = KD_LOSSES[options.kd_method]
    if state_losses:
        live_loss = LiveStateLoss(student, model_in, state_losses, options.device)
    settings = training_settings(options, epochs=options.epochs, learning_rate=options.lr)
    loss = stage_loss(splits, task, options)
    train_(student, tokenizer, splits, out_dir, settings, loss=loss, live_loss=live_loss)
    if hasattr(student, "kd_project"):
        del student.kd_project
    return save_model(student, tokenizer, out_dir)
