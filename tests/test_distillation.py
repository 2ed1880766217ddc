"""State losses against values computed by hand and independent implementations; teacher outputs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from safetensors.torch import load_file
from tiny_models import save_tokenizer
from tiny_training import TASK, soft_splits, tiny_options, write_scratch_model
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainerCallback

import distillation
import pruning
from compression_config import OPTIONS, Options
from data import load_splits
from distillation import LiveStateLoss, StateRecorder, distill, layer_map
from encoders.start import has_known_queries
from losses import (
    KD_LOSSES,
    STATE_LOSSES,
    States,
    attention_loss,
    distillation_loss,
    hard_label_loss,
    hidden_loss,
    relation_loss,
    state_loss,
)
from task import NO_LABEL
from training import class_weights

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
ALL_STATE_LOSSES = tuple(STATE_LOSSES)


def random_states(
    seed: int, layers: int = 2, width: int = 6, dtype: torch.dtype = torch.float32
) -> States:
    """States of two texts of three and two tokens, padded to four."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return States(
        hidden=[draw(2, 4, 5) for _ in range(layers)],
        scores=[draw(2, 3, 4, 4) for _ in range(layers)],
        relations=[draw(2, 2, 4, width // 2) for _ in range(3)],
    )


# The losses


def test_hidden_loss_by_hand():
    student_layer = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    teacher_layer = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    student = States([student_layer], [], [])
    teacher = States([teacher_layer], [], [])
    padded = torch.tensor([[1, 0]])
    assert hidden_loss(student, teacher, padded).item() == (1 + 4) / 2
    full = torch.tensor([[1, 1]])
    assert hidden_loss(student, teacher, full).item() == (1 + 4 + 81 + 81) / 4
    two_layers = States([student_layer, torch.zeros(1, 2, 2)], [], [])
    teacher_twice = States([teacher_layer, teacher_layer], [], [])
    assert hidden_loss(two_layers, teacher_twice, padded).item() == (2.5 + 16 / 2) / 2


def test_attention_loss_by_hand():
    heads = [[[1.0, 5.0], [5.0, 5.0]], [[3.0, 5.0], [5.0, 5.0]]]
    student = States([], [torch.tensor([heads])], [])
    teacher = States([], [torch.zeros(1, 2, 2, 2)], [])
    padded = torch.tensor([[1, 0]])  # two heads, one pair of tokens
    assert attention_loss(student, teacher, padded).item() == (1 + 9) / 2
    full = torch.tensor([[1, 1]])
    assert attention_loss(student, teacher, full).item() == (1 + 9 + 6 * 25) / 8


def relation_of_token(vectors: torch.Tensor, token: int) -> torch.Tensor:
    """softmax(v V^T / sqrt(d)) of one token of one text and head; `vectors` V [tokens, d]."""
    products = [vectors[token] @ vector for vector in vectors]
    return torch.softmax(torch.stack(products) / math.sqrt(vectors.shape[-1]), 0)


def relation_loss_with_loops(student: States, teacher: States) -> float:
    """MiniLMv2's loss, implemented independently with loops over texts, heads and tokens."""
    terms = []
    for student_vectors, teacher_vectors in zip(student.relations, teacher.relations, strict=True):
        for row, length in enumerate(MASK.sum(1).tolist()):
            for head in range(student_vectors.shape[1]):
                for token in range(length):
                    target = relation_of_token(teacher_vectors[row, head, :length], token)
                    relation = relation_of_token(student_vectors[row, head, :length], token)
                    terms.append((target * (target / relation).log()).sum().item())
    return sum(terms) / len(terms)


def test_relation_loss_equals_an_implementation_with_loops_at_different_widths():
    student = random_states(0, width=6)
    teacher = random_states(1, width=10)
    expected = relation_loss_with_loops(student, teacher)
    assert relation_loss(student, teacher, MASK).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", STATE_LOSSES)
def test_a_state_loss_is_zero_for_equal_states_positive_otherwise_and_ignores_padding(name):
    loss = STATE_LOSSES[name]
    teacher = random_states(1)
    assert loss(teacher, teacher, MASK).item() == pytest.approx(0, abs=1e-6)
    value = loss(random_states(0), teacher, MASK).item()
    assert value > 1e-3
    noisy = random_states(0)
    is_padding = MASK == 0
    for values in noisy.hidden:
        values[is_padding] = 1e3
    for values in noisy.scores:
        values.transpose(1, 3)[is_padding] = 1e3
        values.transpose(1, 2)[is_padding] = 1e3
    for values in noisy.relations:
        values.transpose(1, 2)[is_padding] = 1e3
    assert loss(noisy, teacher, MASK).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    "name, field", [("hidden", "hidden"), ("attention", "scores"), ("relation", "relations")]
)
def test_gradients_of_a_state_loss_equal_finite_differences(name, field):
    student = random_states(0, dtype=torch.float64)
    teacher = random_states(1, dtype=torch.float64)
    values = [value.requires_grad_() for value in getattr(student, field)]

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        return STATE_LOSSES[name](student._replace(**{field: list(inputs)}), teacher, MASK)

    assert torch.autograd.gradcheck(loss, values)


def test_state_losses_are_summed():
    student = random_states(0)
    teacher = random_states(1)
    expected = hidden_loss(student, teacher, MASK) + relation_loss(student, teacher, MASK)
    total = state_loss(student, teacher, MASK, ("hidden", "relation"))
    assert total.item() == pytest.approx(expected.item())


def test_every_method_of_the_command_line_has_its_losses():
    assert set(OPTIONS["kd_method"].choices) == set(KD_LOSSES)
    assert set().union(*KD_LOSSES.values()) == set(STATE_LOSSES)


@pytest.mark.parametrize(
    "labels", [torch.tensor([1, NO_LABEL, 0]), torch.tensor([[1.0, 0], [NO_LABEL] * 2, [0, 0]])]
)
def test_a_row_without_a_label_has_only_the_soft_label_loss(labels):
    logits = torch.randn(3, 2, requires_grad=True)
    teacher_logits = torch.randn(3, 2)
    hard_label_loss(logits, labels).backward()
    assert logits.grad[1].tolist() == [0, 0]
    assert logits.grad[0].abs().sum() > 0
    labeled = hard_label_loss(logits[[0, 2]], labels[[0, 2]]).item()
    # the mean over three rows, of which one has a loss of 0
    assert hard_label_loss(logits, labels).item() == pytest.approx(2 / 3 * labeled)
    assert hard_label_loss(logits[1:2], labels[1:2]).item() == 0
    loss = distillation_loss(logits[1:2], labels[1:2], teacher_logits[1:2], 0.7, 2.0)
    soft = distillation_loss(logits[1:2], labels[:1], teacher_logits[1:2], 1, 2.0)
    assert loss.item() == pytest.approx(0.7 * soft.item())


# The states


def test_layers_are_paired_evenly_and_the_last_with_the_last():
    assert layer_map(3, 6) == [1, 3, 5]
    assert layer_map(2, 4) == [1, 3]
    assert layer_map(4, 4) == [0, 1, 2, 3]
    assert layer_map(1, 6) == [5]
    assert layer_map(4, 2) == [0, 0, 1, 1]


BERT_SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "bert": BERT_SIZES,
    "electra": BERT_SIZES | {"embedding_size": 8},
    "roberta": BERT_SIZES | {"max_position_embeddings": 40},
    "distilbert": {"dim": 16, "n_heads": 2, "hidden_dim": 32},
    "albert": BERT_SIZES | {"embedding_size": 8},
    "deberta-v2": BERT_SIZES,
}
UNKNOWN_QUERIES = {"deberta-v2"}


def family_model(family: str, layers: int) -> torch.nn.Module:
    """A tiny model of an encoder family with random weights."""
    config = AutoConfig.for_model(
        family, vocab_size=50, num_labels=2, num_hidden_layers=layers, **FAMILIES[family]
    )
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - UNKNOWN_QUERIES))
def test_recorded_states_are_those_of_the_last_forward_pass(family):
    torch.manual_seed(0)
    model = family_model(family, 3)
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    recorder = StateRecorder(model)
    model(input_ids=ids.flip(0), attention_mask=mask)
    outputs = model(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True
    )
    states = recorder.states(ALL_STATE_LOSSES, [0, 1, 2], relation_heads=4)
    is_padding = mask[:, None, None, :] == 0
    for layer in range(3):
        hidden = outputs.hidden_states[layer + 1]
        assert torch.allclose(states.hidden[layer], hidden, atol=1e-6)
        attention = states.scores[layer].masked_fill(is_padding, -1e9).softmax(-1)
        assert torch.allclose(attention, outputs.attentions[layer], atol=1e-5)
    assert [tuple(values.shape) for values in states.relations] == [(2, 4, 4, 4)] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_queries_are_detected_before_training(family, tmp_path):
    family_model(family, 1).save_pretrained(tmp_path)
    save_tokenizer(family, tmp_path)
    is_known = family not in UNKNOWN_QUERIES
    assert has_known_queries(str(tmp_path), "--teacher_path") is is_known


# The stage


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


@pytest.fixture(scope="module")
def options() -> Options:
    return tiny_options(epochs=2, student_path="scratch:1x64", student_tokenizer="teacher")


@pytest.fixture(scope="module")
def teacher_dir(splits, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("teacher")
    return write_scratch_model("scratch:2x128", splits["train"][:]["text"], directory)


@pytest.fixture(scope="module")
def soft(teacher_dir, splits, tmp_path_factory) -> DatasetDict:
    return soft_splits(teacher_dir, splits, tmp_path_factory.mktemp("outputs"))


def test_a_student_equal_to_its_teacher_has_a_state_loss_of_zero(teacher_dir):
    student = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    loss = LiveStateLoss(student, teacher_dir, ALL_STATE_LOSSES, "cpu")
    batch = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    student(**batch)
    assert loss(batch).item() == pytest.approx(0, abs=1e-6)
    assert not hasattr(student, "kd_project")


def test_the_layers_of_a_student_learn_from_the_layers_of_the_teacher_paired_with_them(teacher_dir):
    """The only layer of the student equals the first of the teacher, and learns from the second."""
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    student = AutoModelForSequenceClassification.from_pretrained(teacher_dir, num_hidden_layers=1)
    student.eval()
    ids = torch.tensor([[2, 7, 8, 3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    hidden = teacher(**batch, output_hidden_states=True).hidden_states
    loss = LiveStateLoss(student, teacher_dir, ("hidden",), "cpu")
    student(**batch)
    expected = (hidden[1] - hidden[2]).square().mean().item()
    assert loss(batch).item() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["hidden", "relation"])
def test_a_narrower_student_learns_from_states_and_is_saved_without_projection(
    method, teacher_dir, soft, options, tmp_path
):
    options = replace(options, kd_method=method)
    directory = distill(teacher_dir, soft, TASK, tmp_path / "student", options)
    weights = load_file(directory / "model.safetensors")
    assert [name for name in weights if "kd_project" in name] == []
    student_tokenizer = json.loads((directory / "tokenizer.json").read_text())
    teacher_tokenizer = json.loads((teacher_dir / "tokenizer.json").read_text())
    assert student_tokenizer["model"] == teacher_tokenizer["model"]
    path = next((directory / "checkpoints").glob("checkpoint-*/trainer_state.json"))
    log = json.loads(path.read_text())["log_history"]
    assert [entry["loss"] for entry in log if "loss" in entry]


def test_all_state_losses_can_be_combined_for_layers_of_the_teacher(
    teacher_dir, soft, options, tmp_path
):
    options = replace(
        options, student_path="teacher:1", student_tokenizer="own", kd_method="multi_level"
    )
    directory = distill(teacher_dir, soft, TASK, tmp_path / "student", options)
    assert (directory / "model.safetensors").is_file()


class Kill(TrainerCallback):
    """Interrupts training after step 6."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


def test_a_killed_distillation_of_states_resumes_to_the_same_weights(
    teacher_dir, soft, options, tmp_path, monkeypatch
):
    options = replace(options, kd_method="hidden", epochs=3)
    uninterrupted = distill(teacher_dir, soft, TASK, tmp_path / "uninterrupted", options)
    train_ = distillation.train_

    def train_until_killed(*args, **kwargs):
        return train_(*args, **kwargs, callbacks=(Kill(),))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation, "train_", train_until_killed)
        distill(teacher_dir, soft, TASK, tmp_path / "resumed", options)
    resumed = distill(teacher_dir, soft, TASK, tmp_path / "resumed", options)
    expected = load_file(uninterrupted / "model.safetensors")
    weights = load_file(resumed / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def with_unlabeled_rows(splits: DatasetDict) -> DatasetDict:
    """The splits with each training row a second time, without its label."""
    unlabeled = splits["train"].map(lambda row: {"label": NO_LABEL})
    return DatasetDict(splits | {"train": concatenate_datasets([splits["train"], unlabeled])})


def test_class_weights_ignore_rows_without_a_label(splits):
    weights = class_weights(splits, TASK, "balanced", "cpu")
    assert torch.equal(class_weights(with_unlabeled_rows(splits), TASK, "balanced", "cpu"), weights)


def test_weights_are_calibrated_only_on_labeled_texts(
    teacher_dir, soft, options, tmp_path, monkeypatch
):
    labels = []

    def record_labels(split, *_):
        labels.extend(split["label"][:])
        return ["a text"]

    monkeypatch.setattr(pruning, "calibration_texts", record_labels)
    options = replace(options, fine_tune_epochs=0)
    pruning.prune(teacher_dir, with_unlabeled_rows(soft), TASK, tmp_path, options)
    assert labels == soft["train"]["label"][:]
