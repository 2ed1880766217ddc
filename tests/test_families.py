"""Every supported family passes every stage; every other one is refused with a reason."""

import json

import pytest
import torch
from family_matrix import QUICK_STAGES, SHAPE, SLOW_STAGES, run_stages
from tiny_families import TASK, save_family
from transformers import AutoConfig, AutoModelForSequenceClassification

from encoders.calibration import input_norms
from encoders.families import encoder_linears, position_limit
from encoders.family_table import REFUSED, SUPPORTED, check_family
from encoders.model_files import UnusableModel
from encoders.start import check_start
from runtime.errors import UserError


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_supported_family_passes_every_stage_up_to_training(family, tmp_path):
    outcomes = run_stages(family, QUICK_STAGES, tmp_path)
    assert outcomes == dict.fromkeys(QUICK_STAGES, "yes")


@pytest.mark.slow
@pytest.mark.parametrize("family", SUPPORTED)
def test_a_supported_family_can_be_quantized_and_exported(family, tmp_path):
    outcomes = run_stages(family, SLOW_STAGES, tmp_path)
    assert outcomes == dict.fromkeys(SLOW_STAGES, "yes")


@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_wanda_scores_linears_of_deberta_on_tokens_and_those_of_positions_on_positions(
    family, tmp_path
):
    save_family(family, tmp_path, SHAPE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 9, 12, 7], [6, 8, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    norms = input_norms(model, encoder_linears(model), [batch, batch])
    hidden = model(**batch, output_hidden_states=True).hidden_states[0].detach()
    tokens = hidden[mask.bool()]
    of_tokens = (2 * tokens.square().sum(dim=0)).sqrt()
    attention = f"{model.base_model_prefix}.encoder.layer.0.attention.self"
    content = "query_proj" if family == "deberta-v2" else "in_proj"
    assert torch.allclose(norms[f"{attention}.{content}"], of_tokens, atol=1e-4)
    if family == "deberta":
        positions = model.base_model.encoder.get_rel_embedding().detach()
        used = positions[positions.shape[0] // 2 - 4 : positions.shape[0] // 2 + 4]
        of_positions = (2 * used.square().sum(dim=0)).sqrt()
        assert torch.allclose(norms[f"{attention}.pos_proj"], of_positions, atol=1e-4)


TABLE_FAMILIES = sorted(set(SUPPORTED) - {"deberta", "deberta-v2"})  # these have no position table


@pytest.mark.parametrize("family", TABLE_FAMILIES)
def test_the_position_limit_is_the_longest_input_that_the_model_reads(family, tmp_path):
    save_family(family, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    limit = position_limit(AutoConfig.from_pretrained(tmp_path))
    ids = torch.full((1, limit + 1), 9)
    assert torch.isfinite(model(ids[:, :limit]).logits).all()
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


@pytest.mark.parametrize("model_type", [*REFUSED, "gpt2", "t5", "no-such-model"])
def test_another_family_is_refused_with_the_supported_ones(model_type):
    with pytest.raises(UnusableModel, match="is not supported") as raised:
        check_family({"model_type": model_type})
    assert f"its model_type {model_type} is" in str(raised.value)
    assert "supported are bert, electra, distilbert" in str(raised.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "modernbert"}, "its model_type modernbert is not supported ("),
        ({"model_type": None}, "its config.json names no model_type"),
        ({"position_embedding_type": "relative_key"}, "the position_embedding_type relative_key"),
    ],
)
def test_an_unsupported_encoder_is_refused_before_training(changes, said, tmp_path):
    folder = save_family("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as raised:
        check_start(str(folder), "--teacher_path", TASK, 64)
    (line,) = raised.value.lines
    assert line.startswith(f"--teacher_path is {folder}, but ") and said in line


def test_one_text_as_long_as_the_relative_positions_is_scored_on_its_tokens(tmp_path):
    save_family("deberta-v2", tmp_path, SHAPE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    length = 2 * model.config.position_buckets
    ids = torch.arange(5, 5 + length).repeat(2, 1)
    ids[1] += 3
    batches = []
    for rows in (ids[:1], ids[1:], ids):
        batches.append({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    linears = encoder_linears(model)
    apart = input_norms(model, linears, batches[:2])
    together = input_norms(model, linears, batches[2:])
    for name in linears:
        assert torch.allclose(apart[name], together[name], rtol=1e-4), name
