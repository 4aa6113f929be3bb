"""accel_restore's optimizers are torch's in every bit, without its compiler."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from accel_restore.optim import eager

SETTINGS = {
    "Adam": [{"weight_decay": 0.1}, {"fused": True}, {"amsgrad": True, "foreach": True}],
    "AdamW": [{}, {"fused": True}, {"betas": (0.8, 0.9)}],
    "SGD": [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"momentum": 0.9, "fused": True}],
}


@pytest.mark.parametrize(("name", "settings"), [(name, each) for name, many in SETTINGS.items() for each in many])
def test_steps_state_and_hooks_are_those_of_torch(name, settings):
    ended = []
    for source in (eager, torch.optim):
        torch.manual_seed(0)
        model, calls = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), []
        made = getattr(source, name)([{"params": model[0].parameters()}], lr=0.1, **settings)
        made.add_param_group({"params": model[1].parameters(), "lr": 0.2})
        made.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
        schedule = StepLR(made, 2)
        for step in range(5):
            made.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            made.step()
            schedule.step()
            if step == 2:
                made.load_state_dict(copy.deepcopy(made.state_dict()))
        assert not any(value.requires_grad for slot in made.state.values() for value in slot.values())
        ended.append((model.state_dict(), made.state_dict(), calls))
    assert str(ended[0]) == str(ended[1]) and len(ended[0][2]) == 5
    assert all(value.equal(ended[1][0][key]) for key, value in ended[0][0].items())
