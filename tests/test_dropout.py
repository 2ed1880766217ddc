"""Dropout by bytes against what dropout promises."""

import pytest
import torch
from torch import nn

from dropout import ByteDropout, draw_bytes_

DROPPED = 26 / 256  # 0.1 in bytes


def dropped(values: torch.Tensor, p: float = 0.1, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return ByteDropout(p)(values)


def test_a_value_is_dropped_or_scaled_so_that_the_mean_stays():
    count = 1_000_003  # eight do not divide it
    found = dropped(torch.full((count,), 3.0))
    assert found.unique().tolist() == pytest.approx([0, 3 / (1 - DROPPED)])
    deviation = (DROPPED * (1 - DROPPED) / count) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(DROPPED, abs=4 * deviation)
    assert float(found.double().mean()) == pytest.approx(3, abs=4 * 3 * deviation / (1 - DROPPED))


def test_neighbours_are_dropped_independently():
    zeros = dropped(torch.ones(1_000_000), 0.5) == 0
    for apart in (1, 8, 64):
        both = float((zeros[:-apart] & zeros[apart:]).double().mean())
        assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1_000_000) ** 0.5)


def test_the_gradient_passes_where_the_value_did_and_with_its_scale():
    values = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found = dropped(values, 0.5)
    found.sum().backward()
    assert torch.equal(values.grad, torch.where(found == 0, 0.0, 2.0).double())


def test_draws_follow_the_seed_and_differ_between_calls():
    values = torch.ones(4, 100, dtype=torch.bfloat16)
    assert torch.equal(dropped(values), dropped(values)) and dropped(values).dtype == torch.bfloat16
    assert not torch.equal(dropped(values), dropped(values, seed=1))
    torch.manual_seed(0)
    layer = ByteDropout(0.5)
    assert not torch.equal(layer(values), layer(values))


@pytest.mark.parametrize(("p", "training", "factor"), [(0.1, False, 1), (0.0, True, 1), (1.0, True, 0)])
def test_nothing_or_all_is_dropped_where_that_is_asked(p, training, factor):
    values = torch.ones(50)
    torch.manual_seed(0)
    found = ByteDropout(p).train(training)(values)
    assert torch.equal(found, factor * values)


def test_only_plain_dropouts_are_replaced():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.1), nn.Dropout1d(0.2)))
    keys = list(model.state_dict())
    draw_bytes_(model)
    assert [type(module) for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout1d)] == [
        ByteDropout, ByteDropout, nn.Dropout1d]  # fmt: skip
    assert [module.p for module in model.modules() if isinstance(module, ByteDropout)] == [0.3, 0.1]
    assert list(model.state_dict()) == keys
