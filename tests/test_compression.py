"""The mathematics of compression against values computed by hand. Also runs as a script."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

# For `python tests/test_compression.py`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from encoders.calibration import input_norms
from encoders.families import encoder_linears, is_attention, keep_layers_
from encoders.sparsity import apply_masks_, check_zero_count, count_zeros, nonzero_masks, sparsity
from encoders.specs import spaced_layers
from losses import balanced_weights, distillation_loss, hard_label_loss, soft_label_loss
from pruning import (
    SCORERS,
    cubic_sparsity,
    linears_to_prune,
    lowest_mask,
    magnitude,
    prune_,
    required_zeros,
    wanda,
)
from task import Task

LOG_3 = math.log(3.0)


def tiny_bert(layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        **Task(("0", "1"), False).config(),
    )
    return BertForSequenceClassification(config).eval()


def one_row_layer(weights: list[float]) -> nn.Linear:
    """A Linear with one output and these weights."""
    linear = nn.Linear(len(weights), 1, bias=False)
    linear.weight.data = torch.tensor([weights])
    return linear


def zeros_in(linears: dict[str, nn.Linear]) -> int:
    return count_zeros(linear.weight for linear in linears.values())


# Losses

# T = 2 softens the teacher's logits (2 ln 3, 0) to (3/4, 1/4) and the student's (0, 0) to
# (1/2, 1/2). KL(teacher || student) = 3/4 ln(3/2) + 1/4 ln(1/2).
KL_AT_2 = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_soft_loss_is_t_squared_times_kl_of_teacher_to_student_by_hand():
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * LOG_3, 0.0]])
    loss = soft_label_loss(student, teacher, 2.0, multi_label=False).item()
    assert loss == pytest.approx(2**2 * KL_AT_2, abs=1e-6)


def test_soft_loss_of_multi_label_is_the_mean_bernoulli_kl_by_hand():
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * LOG_3, 0.0]])
    loss = soft_label_loss(student, teacher, 2.0, multi_label=True).item()
    # The KL of the first label is as above, that of the second is 0; the mean is over two labels.
    assert loss == pytest.approx(2**2 * KL_AT_2 / 2, abs=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_soft_loss_is_zero_at_the_teacher_and_positive_elsewhere(multi_label):
    teacher = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    student = teacher + torch.tensor([1.0, 0, 0])
    at_teacher = soft_label_loss(teacher, teacher, 3.0, multi_label)
    elsewhere = soft_label_loss(student, teacher, 3.0, multi_label)
    assert at_teacher.item() == pytest.approx(0, abs=1e-6)
    assert elsewhere.item() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_gradient_is_the_softened_difference_of_probabilities(temperature):
    student = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    soft_label_loss(student, teacher, temperature, multi_label=False).backward()
    student_probabilities = (student / temperature).softmax(-1)
    teacher_probabilities = (teacher / temperature).softmax(-1)
    # Hinton et al. (2015), equation 2, times T^2.
    by_hand = temperature * (student_probabilities - teacher_probabilities)
    assert torch.allclose(student.grad, by_hand.detach(), atol=1e-6)


def test_alpha_weights_the_soft_against_the_hard_loss():
    logits = torch.tensor([[0.0, 0.0]])
    labels = torch.tensor([1])
    teacher = torch.tensor([[2 * LOG_3, 0.0]])
    soft = 2**2 * KL_AT_2
    hard = math.log(2)
    loss = distillation_loss(logits, labels, teacher, 0.7, 2.0).item()
    assert loss == pytest.approx(0.7 * soft + 0.3 * hard)
    without_teacher = distillation_loss(logits, labels, None, 0.0, 2.0).item()
    assert without_teacher == pytest.approx(hard)


def test_multi_label_hard_loss_is_a_sigmoid_per_label():
    logits = torch.tensor([[LOG_3, 0.0]])
    labels = torch.tensor([[1.0, 1.0]])
    by_hand = (math.log(4 / 3) + math.log(2)) / 2
    assert hard_label_loss(logits, labels).item() == pytest.approx(by_hand)


def test_balanced_weights_give_rare_labels_the_same_total_weight():
    single = balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
    assert single.tolist() == pytest.approx([4 / 6, 4 / 2])
    multiple = balanced_weights(torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, 0]]), 2)
    assert multiple.tolist() == pytest.approx([1.0, 3.0])


# Pruning


def test_pruning_scores_by_hand():
    weight = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    norm = torch.tensor([10.0, 1.0])
    assert magnitude(weight).tolist() == [[1, 4], [3, 2]]
    assert wanda(weight, norm).tolist() == [[10, 4], [30, 2]]
    assert set(SCORERS) == {"magnitude", "wanda"}


def test_the_lowest_scores_of_each_row_are_masked_and_ties_are_broken_by_position():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    assert lowest_mask(scores, 2).tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert not lowest_mask(scores, 0).any()
    assert lowest_mask(scores, 4).all()
    with_ties = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0]])
    assert lowest_mask(with_ties, 3).tolist() == [[True, True, True, False, False]]
    assert lowest_mask(torch.ones(3, 10), 7).sum(dim=1).tolist() == [7, 7, 7]


def test_the_lowest_scores_are_the_first_of_a_stable_sort():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (30, 40), generator=rng).float()  # many ties
    lowest = scores.argsort(dim=1, stable=True)[:, :17]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
    assert torch.equal(lowest_mask(scores, 17), mask)


def test_weights_are_compared_within_an_output_row():
    layers = {"first": nn.Linear(2, 2, bias=False), "second": nn.Linear(2, 2, bias=False)}
    layers["first"].weight.data = torch.tensor([[1.0, -2.0], [5.0, 6.0]])
    layers["second"].weight.data = torch.tensor([[0.5, -7.0], [8.0, 0.1]])
    prune_(layers, "magnitude", 0.5, {})
    assert layers["first"].weight.tolist() == [[0, -2], [0, 6]]
    assert layers["second"].weight.tolist() == [[0, -7], [8, 0]]
    assert required_zeros(layers, 0.5) == zeros_in(layers) == 4


def test_the_number_of_zeros_is_rounded_in_each_row():
    # round(0.5 * 3) = 2 zeros in each of 5 rows.
    assert required_zeros({"odd": nn.Linear(3, 5)}, 0.5) == 5 * 2


def test_wanda_and_magnitude_disagree_if_input_norms_differ():
    by_magnitude = one_row_layer([1.0, 2.0])
    prune_({"layer": by_magnitude}, "magnitude", 0.5, {})
    assert by_magnitude.weight.tolist() == [[0, 2]]
    by_wanda = one_row_layer([1.0, 2.0])
    prune_({"layer": by_wanda}, "wanda", 0.5, {"layer": torch.tensor([10.0, 1.0])})
    assert by_wanda.weight.tolist() == [[1, 0]]


@pytest.mark.parametrize("shape, ratio", [((7, 13), 0.3), ((16, 32), 0.6), ((5, 4), 0.5)])
def test_wanda_is_the_algorithm_of_the_paper_on_random_layers(shape, ratio):
    """Sun et al. (2023), algorithm 1: metric, sort along the inputs, zero the first columns."""
    outputs, inputs = shape
    rng = torch.Generator().manual_seed(outputs)
    linear = nn.Linear(inputs, outputs)
    norms = torch.randn(50, inputs, generator=rng).norm(p=2, dim=0)
    expected = linear.weight.detach().clone()
    order = torch.sort(expected.abs() * norms, dim=1).indices
    expected.scatter_(1, order[:, : round(inputs * ratio)], 0)
    prune_({"layer": linear}, "wanda", ratio, {"layer": norms})
    assert torch.equal(linear.weight, expected)


def test_a_layer_of_more_than_16_million_weights_is_pruned():
    layer = nn.Linear(4200, 4000, bias=False)
    prune_({"layer": layer}, "magnitude", 0.25, {})
    assert count_zeros([layer.weight]) == 4_200_000


def test_the_cubic_schedule_by_hand():
    sparsities = [cubic_sparsity(step, 4, 0.8) for step in (0, 1, 2, 4, 9)]
    assert sparsities == pytest.approx([0, 0.8 * 37 / 64, 0.7, 0.8, 0.8])


def test_only_encoder_linears_are_pruned():
    model = tiny_bert()
    all_names = set(linears_to_prune(model, "all"))
    assert len(all_names) == 12
    assert not any("pooler" in name or "classifier" in name for name in all_names)
    attention_names = set(linears_to_prune(model, "attention"))
    assert len(attention_names) == 8
    assert all(is_attention(name) for name in attention_names)
    assert set(linears_to_prune(model, "ffn")) == all_names - attention_names


def test_a_changed_zero_is_noticed_and_set_back():
    linears = linears_to_prune(tiny_bert(), "all")
    prune_(linears, "magnitude", 0.5, {})
    masks = nonzero_masks(linears)
    required = required_zeros(linears, 0.5)
    assert sparsity(linears) == pytest.approx(0.5)
    check_zero_count(zeros_in(linears), required, "now")
    next(iter(linears.values())).weight.data[0] = 1.0
    with pytest.raises(RuntimeError, match="sparsity"):
        check_zero_count(zeros_in(linears), required, "now")
    apply_masks_(linears, masks)
    assert zeros_in(linears) == required


# Calibration


def test_input_norms_ignore_padding_by_hand():
    model = tiny_bert()
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    linears = encoder_linears(model)
    name = next(iter(linears))
    hidden = model.bert.embeddings(ids)  # the input of the first layer's query Linear
    by_hand = torch.cat([hidden[0, :3], hidden[1]]).square().sum(0).sqrt()
    norms = input_norms(model, linears, [{"input_ids": ids, "attention_mask": mask}])
    assert torch.allclose(norms[name], by_hand, atol=1e-5)


def test_input_norms_do_not_depend_on_batching():
    model = tiny_bert()
    linears = encoder_linears(model)
    ids = torch.tensor([[i, i + 1, i + 2] for i in range(5, 11)])
    batch = {"input_ids": ids, "attention_mask": torch.ones(6, 3)}
    single_rows = [{"input_ids": row[None], "attention_mask": torch.ones(1, 3)} for row in ids]
    norms_of_rows = input_norms(model, linears, single_rows)
    norms_of_batch = input_norms(model, linears, [batch])
    assert set(norms_of_rows) == set(linears)
    for name in linears:
        assert torch.allclose(norms_of_rows[name], norms_of_batch[name], rtol=1e-4)


# Layers of the teacher


def test_layers_of_the_teacher_are_spaced_evenly():
    assert spaced_layers(3, 6) == [0, 2, 5]
    assert spaced_layers(2, 4) == [0, 3]
    assert spaced_layers(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spaced_layers(1, 6) == [5]


def test_dropping_layers_keeps_the_named_ones():
    model = tiny_bert(4)
    keep_layers_(model, [0, 3])
    layers = model.bert.encoder.layer
    last_layer = tiny_bert(4).bert.encoder.layer[3]
    assert len(layers) == model.config.num_hidden_layers == 2
    assert torch.equal(layers[1].output.dense.weight, last_layer.output.dense.weight)


def test_alberts_shared_layer_is_run_fewer_times():
    config = AlbertConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        intermediate_size=16,
        num_attention_heads=2,
    )
    model = AlbertForSequenceClassification(config)
    keep_layers_(model, [0, 3])
    assert model.config.num_hidden_layers == 2
    assert len(model.albert.encoder.albert_layer_groups) == 1


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
