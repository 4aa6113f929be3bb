"""The average of the weights, against a plain loop."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.optim.ema import Ema


def average(decay: float, warm_up: bool, updates: int) -> tuple[list[float], list[float]]:
    """Return the average after each update of a changing weight, and the weight."""
    model = nn.ParameterList([torch.zeros(3, dtype=torch.float64)])
    averaged = Ema(copy.deepcopy(model), decay, warm_up)
    by_torch = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averages, weights = [], []
    for update in range(updates):
        with torch.no_grad():
            model[0].fill_(float(torch.tensor(1.7 * update).sin()) + update / 10)
        averaged.update(model)
        by_torch.update_parameters(model)
        assert warm_up or torch.equal(averaged.module[0], by_torch.module[0])
        averages.append(averaged.module[0][1].item())
        weights.append(model[0][1].item())
    return averages, weights


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_equals_a_plain_loop(decay):
    found, weights = average(decay, True, 200)
    expected = [weights[0]]  # torch copies the weights at the first update
    for t, weight in enumerate(weights[1:], 1):
        now = min(decay, (1 + t) / (10 + t))
        expected.append(now * expected[-1] + (1 - now) * weight)
    assert found == pytest.approx(expected, rel=1e-12)
    constant, _ = average(decay, False, 200)  # the control
    assert constant != pytest.approx(expected, rel=1e-3)
    assert abs(found[20] - weights[20]) < abs(constant[20] - weights[20]) or decay == 0.5


def test_ema_warmup_without_ema_decay_is_rejected():
    tree = {"data": {"train": {"gt": "a"}}, "train": {"ema_warmup": True}}
    with pytest.raises(UserError, match=r"train\.ema_warmup: needs train\.ema_decay; set it"):
        config_from(tree)
    assert config_from(tree, ["train.ema_decay=0.9"]).train.ema_warmup
