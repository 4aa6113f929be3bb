"""`fit` with objects: model, loss and callbacks; what the files of the run record of them, and how they are loaded."""

import json
import threading

import numpy as np
import pytest
import torch
from runs import epochs_of, last_weights, run_folder, small_config
from safetensors import safe_open
from torch import nn

from accel_restore import Callback, fit, load
from accel_restore.cli import main
from accel_restore.errors import UserError

PHOTOS = 8, 1  # training, validation


class Net(nn.Module):
    """A convolution, added to its input; `gain` is not visible in the weights."""

    def __init__(self, width: int = 3, gain: float = 0.1):
        super().__init__()
        self.gain, self.conv = gain, nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return x + self.gain * self.last(self.conv(x))


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Smooth(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self, eps: float):
        super().__init__()
        self.register_buffer("eps", torch.tensor(eps))

    def forward(self, output, gt):
        return ((output - gt).square() + self.eps).sqrt().flatten(1).mean(1)


class Steps(Callback):
    def __init__(self):
        self.seen = []

    def on_step(self, state):
        self.seen.append(state.step)


def mean_loss(output, gt):
    return (output - gt).abs().mean()


def config_of(photos, out, name="small", **sections):
    config = small_config(*photos, out, run={"name": name}, **{"train": {"epochs": 1}, **sections})
    del config["model"]
    return config


def states(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def description_of(folder):
    with safe_open(folder / "best.safetensors", "pt") as file:
        return json.loads(file.metadata()["model"])


def test_objects_train_as_their_names_do_from_the_weights_of_the_model(photos, tmp_path, one_thread):
    torch.manual_seed(7)  # the seed of the run, from which a named model is built
    net, steps = Net(), Steps()
    before = states(net)
    ours = config_of(photos, tmp_path, "ours", train={"epochs": 2, "ema_decay": 0.5})
    folder = fit(ours, model=net, loss=Smooth(1e-3), callbacks=[steps], cpu=True)
    assert same(states(net), before), "a copy is trained" and steps.seen == [1, 2]
    theirs = config_of(photos, tmp_path, "theirs", train={"epochs": 2, "ema_decay": 0.5})
    theirs |= {"model": {"name": "test_fit_objects:Net"}, "loss": {"test_fit_objects:Smooth": {"eps": 1e-3}}}
    fit(theirs, cpu=True)
    assert same(last_weights(ours), last_weights(theirs))
    assert description_of(folder) == {"name": "test_fit_objects:Net", "arguments": {}}
    restored = load(folder / "best.safetensors").model
    assert isinstance(restored, Net) and type(restored) is Net
    config = (folder / "config.yaml").read_text()
    assert "test_fit_objects:Net" in config and "test_fit_objects:Smooth" in config
    assert "test_fit_objects:Steps" in config


def test_a_model_with_arguments_is_loaded_into_a_module_like_it(photos, tmp_path):
    folder = fit(config_of(photos, tmp_path), model=Net(gain=0.5), cpu=True)
    weights = folder / "best.safetensors"
    assert description_of(folder)["object"] is True
    with pytest.raises(UserError, match=r"was given to fit as an object.*accel_restore.load\(path, model=Net\(...\)\)"):
        load(weights)
    net = Net(gain=0.5)
    restorer = load(weights, model=net)
    assert restorer.model is net and same(states(net), last_weights({"run": {"dir": str(tmp_path), "name": "small"}}))
    assert restorer(np.zeros((20, 20, 3), np.uint8)).shape == (20, 20, 3)
    with pytest.raises(UserError, match=r"best.safetensors: the weights do not fit the model 'Net': 'conv.bias' is"):
        load(weights, model=Net(width=4))


def test_commands_say_how_such_weights_are_loaded(photos, tmp_path, capsys):
    folder = fit(config_of(photos, tmp_path), model=Net(gain=0.5), cpu=True)
    code = main(["restore", str(folder / "best.safetensors"), str(photos[1]), "-o", str(tmp_path / "out")])
    assert code == 2 and "was given to fit as an object" in capsys.readouterr().err


@pytest.mark.parametrize("model", [Net, lambda: Net(gain=0.5), Locked], ids=["class", "function", "class with a lock"])
def test_a_class_or_function_that_builds_the_model_is_taken(photos, tmp_path, model):
    config = config_of(photos, tmp_path, train={"epochs": 1, "ema_decay": 0.5})
    folder = fit(config, model=model, cpu=True)
    assert len(epochs_of(config)) == 1
    assert ("object" in description_of(folder)) == (not isinstance(model, type))


def test_a_run_continues_with_the_object_and_names_it_without(photos, tmp_path, one_thread):
    config = config_of(photos, tmp_path, "parts", scheduler={"name": "constant"})
    torch.manual_seed(0)
    first = states(Net(gain=0.5))

    def net():
        made = Net(gain=0.5)
        made.load_state_dict(first)
        return made

    fit(config, model=net(), loss=Smooth(0.1), cpu=True)
    longer = "train.epochs=2"
    with pytest.raises(UserError) as caught:
        fit(config, longer, cpu=True)
    lines = str(caught.value).splitlines()
    assert any("model.name: test_fit_objects:Net in the commit, unet now; give fit the model" in line for line in lines)
    assert any(
        "loss.test_fit_objects:Smooth: 1.0 in the commit, unset now; give fit the loss" in line for line in lines
    )
    fit(config, longer, model=Net(gain=0.5), loss=Smooth(0.1), cpu=True)  # its weights are those of the commit
    whole = config_of(photos, tmp_path, "whole", scheduler={"name": "constant"})
    fit(whole, longer, model=net(), loss=Smooth(0.1), cpu=True)
    assert same(last_weights(config), last_weights(whole))


def test_the_configuration_of_a_run_goes_with_its_object(photos, tmp_path):
    folder = fit(config_of(photos, tmp_path), model=Net(), loss=Smooth(0.1), cpu=True)
    fit(folder / "config.yaml", "run.name=again", model=Net(), loss=Smooth(0.1), cpu=True)
    assert (tmp_path / "again" / "best.safetensors").exists()


def test_weights_of_a_file_are_loaded_into_the_object(photos, tmp_path):
    folder = fit(config_of(photos, tmp_path), model=Net(gain=0.5), cpu=True)
    config = config_of(photos, tmp_path, "tuned", optimizer={"lr": 1e-12}, scheduler={"name": "constant"})
    fit(config, f"model.checkpoint={folder / 'best.safetensors'}", model=Net(gain=0.5), cpu=True)
    ours, theirs = last_weights(config), last_weights(config_of(photos, tmp_path))
    assert all(torch.allclose(ours[name], tensor, atol=1e-9) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("given", "sections", "message"),
    [
        ({"model": "unet"}, {}, "fit: model must be a torch.nn.Module, or a function that returns one, not a str"),
        ({"model": Net()}, {"model": {"name": "dncnn"}}, "the configuration sets model.name to 'dncnn'; remove one"),
        ({"model": Locked()}, {}, r"model: the Locked cannot be copied .*lock.*model=lambda: Locked\(...\)"),
        ({"model": lambda: 3}, {}, "model: '.*<lambda>' returns a int, not a torch.nn.Module"),
        ({"model": lambda width: Net(width)}, {}, "model.width: missing"),
        ({"model": lambda: 1 / 0}, {}, r"cannot be built: ZeroDivisionError: .*\(test_fit_objects.py, line"),
        ({"model": nn.Conv2d(3, 4, 1)}, {}, r"model: 'torch.nn.*Conv2d' returns shape \(2, 4, 16, 16\)"),
        ({"loss": "l1"}, {}, r"fit: loss must be a function of \(output, gt\), not a str"),
        ({"loss": Smooth(1.0)}, {"loss": {"l1": 1.0}}, "the configuration sets loss to l1; remove one"),
        ({"loss": mean_loss}, {}, r"loss.test_fit_objects:mean_loss: returns \(\) for 2 samples"),
        ({"callbacks": Steps()}, {}, "fit: callbacks must be a list of callbacks, not a Steps"),
        (
            {"callbacks": [Steps]},
            {},
            r"must be accel_restore.Callback objects, not Steps; give an object, Steps\(...\)",
        ),
        ({"callbacks": [print]}, {}, "must be accel_restore.Callback objects, not a builtin_function_or_method"),
    ],
)
def test_an_object_that_cannot_be_used_is_refused_before_anything_is_written(
    photos, tmp_path, given, sections, message
):
    config = {**config_of(photos, tmp_path / "out"), **sections}
    with pytest.raises(UserError, match=message):
        fit(config, cpu=True, **given)
    assert not run_folder(config).exists()


def test_a_function_that_returns_one_module_each_time_is_refused(photos, tmp_path):
    net = Net()
    with pytest.raises(UserError, match=r"shares conv.weight, .* between all its instances"):
        fit(config_of(photos, tmp_path), model=lambda: net, cpu=True)
