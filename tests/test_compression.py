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

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # for `python tests/test_compression.py`
from encoders.calibration import input_norms
from encoders.families import encoder_linears, is_attention, keep_layers_
from encoders.sparsity import apply_masks_, check_zero_count, count_zeros, nonzero_masks, sparsity
from encoders.start import spaced_layers
from losses import balanced_weights, distillation_loss, hard_label_loss, soft_label_loss
from pruning import (
    SCORERS,
    cubic_sparsity,
    linears_to_prune,
    lowest_mask,
    magnitude,
    promised_zeros,
    prune_,
    wanda,
)
from task import Task


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


def test_soft_loss_is_t_squared_times_kl_of_teacher_to_student_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # T = 2: teacher softens to (3/4, 1/4), student to (1/2, 1/2); KL(teacher || student) = 3/4 ln 3/2 + 1/4 ln 1/2
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_label_loss(student, teacher, 2.0, multi_label=False).item() == pytest.approx(
        by_hand, abs=1e-6
    )


def test_soft_loss_of_multi_label_is_the_mean_bernoulli_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    by_hand = (
        4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    )  # the second label agrees, two labels share
    assert soft_label_loss(student, teacher, 2.0, multi_label=True).item() == pytest.approx(
        by_hand, abs=1e-6
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_soft_loss_is_zero_at_the_teacher_and_positive_elsewhere(multi_label):
    teacher = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    assert soft_label_loss(teacher, teacher, 3.0, multi_label).item() == pytest.approx(0, abs=1e-6)
    assert (
        soft_label_loss(teacher + torch.tensor([1.0, 0, 0]), teacher, 3.0, multi_label).item()
        > 1e-3
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_gradient_is_the_softened_difference_of_probabilities(temperature):
    student = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    soft_label_loss(student, teacher, temperature, multi_label=False).backward()
    by_hand = temperature * (
        (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    )
    assert torch.allclose(
        student.grad, by_hand.detach(), atol=1e-6
    )  # Hinton et al. (2015), equation 2, times T^2


def test_alpha_weighs_soft_against_hard():
    logits, labels, teacher = (
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([1]),
        torch.tensor([[2 * math.log(3.0), 0.0]]),
    )
    soft, hard = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), math.log(2)
    assert distillation_loss(logits, labels, teacher, 0.7, 2.0).item() == pytest.approx(
        0.7 * soft + 0.3 * hard
    )
    assert distillation_loss(logits, labels, None, 0.0, 2.0).item() == pytest.approx(
        hard
    )  # no teacher is needed


def test_multi_label_hard_loss_is_a_sigmoid_per_label():
    logits, labels = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[1.0, 1.0]])
    assert hard_label_loss(logits, labels).item() == pytest.approx(
        (math.log(4 / 3) + math.log(2)) / 2
    )


def test_balanced_weights_make_rare_labels_count_as_much():
    assert balanced_weights(torch.tensor([0, 0, 0, 1]), 2).tolist() == pytest.approx([4 / 6, 4 / 2])
    assert balanced_weights(
        torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, 0]]), 2
    ).tolist() == pytest.approx([1.0, 3.0])


def test_scores_by_hand():
    weight, norm = torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor([10.0, 1.0])
    assert magnitude(weight).tolist() == [[1, 4], [3, 2]]
    assert wanda(weight, norm).tolist() == [[10, 4], [30, 2]]
    assert set(SCORERS) == {"magnitude", "wanda"}


def test_the_lowest_of_each_row_go_and_of_equals_the_first():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    assert lowest_mask(scores, 2).tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]
    assert not lowest_mask(scores, 0).any() and lowest_mask(scores, 4).all()
    assert lowest_mask(torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0]]), 3).tolist() == [
        [True, True, True, False, False]
    ]
    assert lowest_mask(torch.ones(3, 10), 7).sum(dim=1).tolist() == [7, 7, 7]


def test_the_lowest_are_those_that_sorting_finds():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (30, 40), generator=rng).float()  # many equals
    gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(
        1, scores.argsort(dim=1, stable=True)[:, :17], True
    )
    assert torch.equal(lowest_mask(scores, 17), gone)


def two_layers() -> dict[str, nn.Linear]:
    layers = {"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False)}
    layers["one"].weight.data = torch.tensor([[1.0, -2.0], [5.0, 6.0]])
    layers["two"].weight.data = torch.tensor([[0.5, -7.0], [8.0, 0.1]])
    return layers


@pytest.mark.parametrize(
    "scope, zeros",
    [
        ("row", [[[0, -2], [0, 6]], [[0, -7], [8, 0]]]),
        ("layer", [[[0, 0], [5, 6]], [[0, -7], [8, 0]]]),
        ("global", [[[0, 0], [5, 6]], [[0, -7], [8, 0]]]),
    ],
)
def test_weights_compete_within_a_row_a_layer_or_all(scope, zeros):
    layers = two_layers()
    prune_(layers, "magnitude", 0.5, scope, {})
    assert [layer.weight.tolist() for layer in layers.values()] == zeros
    assert (
        promised_zeros(layers, 0.5, scope)
        == count_zeros(layer.weight for layer in layers.values())
        == 4
    )


def test_layers_of_a_global_scope_lose_unequal_shares():
    layers = two_layers()
    layers["one"].weight.data *= 100
    prune_(layers, "magnitude", 0.5, "global", {})
    assert [count_zeros([layer.weight]) for layer in layers.values()] == [0, 4]
    odd = {"odd": nn.Linear(3, 5)}
    assert promised_zeros(odd, 0.5, "row") == 5 * 2 and promised_zeros(odd, 0.5, "layer") == 8


def test_wanda_and_magnitude_disagree_where_inputs_do():
    for method, norms, left in (
        ("magnitude", {}, [0, 2]),
        ("wanda", {"layer": torch.tensor([10.0, 1.0])}, [1, 0]),
    ):
        linear = nn.Linear(2, 1, bias=False)
        linear.weight.data = torch.tensor([[1.0, 2.0]])
        prune_({"layer": linear}, method, 0.5, "row", norms)
        assert linear.weight.tolist() == [left]


@pytest.mark.parametrize("shape, sparsity", [((7, 13), 0.3), ((16, 32), 0.6), ((5, 4), 0.5)])
def test_wanda_is_the_papers_own_procedure_on_random_layers(shape, sparsity):
    """Sun et al. (2023), algorithm 1, written anew: metric, sort along the inputs, zero the
    first columns."""
    rng = torch.Generator().manual_seed(shape[0])
    linear, inputs = nn.Linear(*shape[::-1]), torch.randn(50, shape[1], generator=rng)
    weight = linear.weight.detach().clone()
    metric = weight.abs() * inputs.norm(p=2, dim=0)
    order = torch.sort(metric, dim=1).indices
    weight.scatter_(1, order[:, : round(shape[1] * sparsity)], 0)
    prune_({"layer": linear}, "wanda", sparsity, "row", {"layer": inputs.norm(p=2, dim=0)})
    assert torch.equal(linear.weight, weight)


def test_a_layer_of_more_than_16_million_weights_is_pruned():
    layer = nn.Linear(4200, 4000, bias=False)
    prune_({"layer": layer}, "magnitude", 0.25, "layer", {})
    assert count_zeros([layer.weight]) == 4_200_000


def test_the_cubic_schedule_by_hand():
    assert [cubic_sparsity(step, 4, 0.8) for step in (0, 1, 2, 4, 9)] == pytest.approx(
        [0, 0.8 * 37 / 64, 0.7, 0.8, 0.8]
    )


def test_input_norm_is_taken_over_real_tokens_alone():
    model = tiny_bert()
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    name = next(iter(encoder_linears(model)))
    hidden = model.bert.embeddings(ids)  # what reaches the first layer's query
    by_hand = torch.cat([hidden[0, :3], hidden[1]]).square().sum(0).sqrt()
    norms = input_norms(model, encoder_linears(model), [{"input_ids": ids, "attention_mask": mask}])
    assert torch.allclose(norms[name], by_hand, atol=1e-5)


def test_input_norms_do_not_depend_on_batching():
    model = tiny_bert()
    rows = [
        {"input_ids": torch.tensor([[i, i + 1, i + 2]]), "attention_mask": torch.ones(1, 3)}
        for i in range(5, 11)
    ]
    whole = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    one, many = (input_norms(model, encoder_linears(model), batches) for batches in (rows, [whole]))
    assert all(torch.allclose(one[name], many[name], rtol=1e-4) for name in one)


def test_only_encoder_linears_are_pruned():
    model = tiny_bert()
    names = linears_to_prune(model, "all")
    assert len(names) == 12 and not any("pooler" in name or "classifier" in name for name in names)
    attention = linears_to_prune(model, "attention")
    assert len(attention) == 8 and all(map(is_attention, attention))
    assert len(linears_to_prune(model, "ffn")) == 4


def test_a_revived_weight_is_set_back_or_noticed():
    linears = linears_to_prune(tiny_bert(), "all")
    prune_(linears, "magnitude", 0.5, "row", {})
    masks, wanted = nonzero_masks(linears), promised_zeros(linears, 0.5, "row")
    assert sparsity(linears) == pytest.approx(0.5)
    check_zero_count(count_zeros(linear.weight for linear in linears.values()), wanted, "now")
    next(iter(linears.values())).weight.data[0] = 1.0
    with pytest.raises(RuntimeError, match="sparsity"):
        check_zero_count(count_zeros(linear.weight for linear in linears.values()), wanted, "now")
    apply_masks_(linears, masks)
    assert count_zeros(linear.weight for linear in linears.values()) == wanted


def test_layers_of_the_teacher_are_spaced_evenly():
    assert spaced_layers(3, 6) == [0, 2, 5]
    assert spaced_layers(2, 4) == [0, 3]
    assert spaced_layers(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spaced_layers(1, 6) == [5]


def test_dropping_layers_keeps_the_named_ones():
    model, whole = tiny_bert(4), tiny_bert(4)
    keep_layers_(model, [0, 3])
    kept, last = model.bert.encoder.layer, whole.bert.encoder.layer[3]
    assert len(kept) == model.config.num_hidden_layers == 2
    assert torch.equal(kept[1].output.dense.weight, last.output.dense.weight)


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
    assert (
        model.config.num_hidden_layers == 2 and len(model.albert.encoder.albert_layer_groups) == 1
    )


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
