"""What a broken part of the user's own reports: one sentence with its key and name, before anything is written."""

import json
import sys

import pytest
import torch
from runs import run_folder, small_config
from torch import nn

from accel_restore import Callback, fit
from accel_restore.errors import CallbackError, UserError

PHOTOS = 2, 1  # training, validation
HERE = "test_broken_parts"


class Failing:
    def __init__(self, *given, **arguments):
        raise OSError("no such table")


def failing(*given, **arguments):
    raise ZeroDivisionError("one third")


def returns_text(*given, **arguments):
    return "text"


def exits(*given, **arguments):
    sys.exit(0)


class Exiting:
    def __init__(self, *given, **arguments):
        exits()


class ExitingModel(Exiting, nn.Module):
    pass


class FailingModel(Failing, nn.Module):
    pass


class Model(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image):
        return failing()


class HalfSize(Model):
    def forward(self, image):
        return self.conv(image)[..., ::2, ::2]


class TextModel(Model):
    def forward(self, image):
        return str(self.conv(image))


def scalar_loss(output, gt):
    return (output - gt).abs().mean()


def map_of_errors(output, gt):
    return (output - gt).abs()


class ExitsLater:
    def __init__(self):
        self.calls = 0

    def __call__(self, output, gt):
        self.calls += 1
        if self.calls > 2:
            exits()
        return (output - gt).abs().flatten(1).mean(1)


def changes_gt(output, gt):
    return (output - gt.add_(1)).abs().flatten(1).mean(1)


class FailingOptimizer(Failing, torch.optim.Optimizer):
    pass


class StepFails(torch.optim.SGD):
    def step(self, closure=None):
        return failing()


class RateFails(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return failing()


def needs_more(optimizer, epochs, *, peak):
    return torch.optim.lr_scheduler.ConstantLR(optimizer)


class FailingCallback(Failing, Callback):
    pass


class ExitingCallback(Exiting, Callback):
    pass


class WrongMethod(Callback):
    def on_step(self):
        pass


class Misspelt(Callback):
    def on_steps(self, state):
        pass


class StepRaises(Callback):
    def on_step(self, state):
        return failing()


def half_size(image, random):
    return image[..., ::2, ::2]


def more_channels(image, random):
    return torch.cat([image, image])


ABSENT = {"absent", "nowhere.parts:Name"}  # an attribute, and a package
BROKEN = {  # key of the configuration → name → words of its message
    "model": {"FailingModel": "no such table", "Model": "one third", "HalfSize": r"shape \(\d, 3, 8, 8\)",
              "TextModel": "returns a str", "ExitingModel": "SystemExit: 0",
              "returns_text": r"not a torch\.nn\.Module class"},
    "loss": {"Failing": "no such table", "failing": "one third", "scalar_loss": r"returns \(\) for 2 samples",
             "map_of_errors": r"returns \(2, 3, 8, 8\)", "returns_text": "returns str",
             "exits": "SystemExit: 0", "changes_gt": "changes gt in place"},
    "metric": {"Failing": "no such table", "failing": "one third", "map_of_errors": r"returns shape \(1, 3",
               "returns_text": "returns a str", "exits": "SystemExit: 0"},
    "optimizer": {"FailingOptimizer": "no such table", "failing": "one third", "StepFails": "one third",
                  "returns_text": "str", "exits": "SystemExit: 0"},
    "scheduler": {"failing": "one third", "RateFails": "one third", "returns_text": "str", "exits": "SystemExit: 0",
                  "needs_more": "peak: missing"},
    "callback": {"FailingCallback": "no such table", "returns_text": r"not a subclass of accel_restore\.Callback",
                 "WrongMethod": r"define on_step\(self, state\)", "Misspelt": "a method on_steps, which is never",
                 "ExitingCallback": "SystemExit: 0"},
    "degradation": {"failing": "one third", "half_size": "another size|can make an input", "more_channels": "channels",
                    "returns_text": "must return an image", "exits": "SystemExit: 0"},
}  # fmt: skip
PLACES = {  # kind → what the message starts with, and the sections that use a part of this name
    "model": (r"model", lambda name: {"model": {"name": name}}),
    "loss": (r"loss", lambda name: {"loss": {name: 1.0}}),
    "metric": (r"validation\.metrics", lambda name: {"validation": {"metrics": [name]}}),
    "optimizer": (r"optimizer", lambda name: {"optimizer": {"name": name, "lr": 0.001}}),
    "scheduler": (r"scheduler", lambda name: {"scheduler": {"name": name}}),
    "callback": (r"callbacks\.0", lambda name: {"callbacks": [name]}),
    "degradation": (r"data\.degradation", lambda name: {"data": {"degradation": [{"name": name}]}}),
}
CASES = [(kind, name, words) for kind, broken in BROKEN.items() for name, words in broken.items()]
CASES += [(kind, name, f"cannot import '.*{name}'") for kind in BROKEN for name in sorted(ABSENT)]


def config_of(photos, out, kind: str, name: str) -> dict:
    path = name if ":" in name else f"{HERE}:{name}"
    sections = PLACES[kind][1](path)
    config = small_config(*photos, out, data={**sections.pop("data", {}), "batch_size": 2})
    return {**config, **sections}


@pytest.mark.parametrize(("kind", "name", "words"), CASES)
def test_a_broken_part_is_named_and_leaves_no_files(photos, tmp_path, kind, name, words):
    config = config_of(photos, tmp_path, kind, name)
    start = PLACES[kind][0]
    with pytest.raises(UserError, match=rf"^{start}[\s\S]*{words}") as caught:
        fit(config, cpu=True)
    assert "\n" not in str(caught.value) and not run_folder(config).exists()


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("length", [{"epochs": 2}, {"max_steps": 4}, {"max_steps": 4, "steps_per_epoch": 2}])
def test_parts_are_tried_before_images_are_decoded(photos, tmp_path, kind, length, monkeypatch):
    config = config_of(photos, tmp_path, kind, next(iter(BROKEN[kind])))
    config["train"] = length
    monkeypatch.setattr("accel_restore.trainer.setup.find_data", None)
    with pytest.raises(UserError, match=rf"^{PLACES[kind][0]}"):
        fit(config, cpu=True)


@pytest.mark.parametrize("kind", BROKEN)
def test_unknown_arguments_are_rejected_with_their_key(photos, tmp_path, kind):
    given = {"model": "HalfSize", "optimizer": "StepFails", "scheduler": "needs_more", "callback": "StepRaises"}
    config = config_of(photos, tmp_path, kind, given.get(kind, "strict"))
    entry: dict = {"absent": 3}
    match kind:
        case "loss":
            config["loss"] = dict.fromkeys(config["loss"], entry)
        case "metric":
            config["validation"]["metrics"] = [{"name": name, **entry} for name in config["validation"]["metrics"]]
        case "callback":
            config["callbacks"] = [{"name": name, **entry} for name in config["callbacks"]]
        case "degradation":
            config["data"]["degradation"] = [{"name": f"{HERE}:strict_step", **entry}]
        case _:
            config[kind] |= entry
    with pytest.raises(UserError, match=rf"{PLACES[kind][0]}[\w.:]*\.absent: unknown key"):
        fit(config, cpu=True)
    assert not run_folder(config).exists()


def strict(output, gt, *, scale=1.0):
    return scale * (output - gt).abs().flatten(1).mean(1)


def strict_step(image, random, *, scale=1.0):
    return scale * image


def test_a_callback_that_raises_ends_the_run_as_failed(photos, tmp_path):
    config = config_of(photos, tmp_path, "callback", "StepRaises")
    with pytest.raises(CallbackError, match=r"StepRaises.*on_step.*one third"):
        fit(config, cpu=True)
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["state"] == "failed" and "StepRaises" in status["error"]


def test_a_part_that_calls_exit_while_training_ends_the_run_as_failed(photos, tmp_path):
    config = config_of(photos, tmp_path, "loss", "ExitsLater")
    with pytest.raises(RuntimeError, match=r"sys\.exit \(SystemExit: 0 \(test_broken_parts\.py, line \d+\)\)"):
        fit(config, cpu=True)
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["state"] == "failed" and "sys.exit" in status["error"]
