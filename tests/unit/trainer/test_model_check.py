"""A user's own code is tried before a run starts; an error is one sentence that names its line."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from accel_restore.config.load import config_from
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.errors import UserError
from accel_restore.losses import build_loss
from accel_restore.metrics.protocol import Protocol
from accel_restore.models import build_model
from accel_restore.trainer.model_check import Trial, check_copy


class Own(nn.Module):
    """A convolution with a change: a line of code in which `x` is the input and `y` the output."""

    def __init__(self, change: str = "", channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.spare = nn.Linear(2, 2)
        self.change = change

    def forward(self, x: torch.Tensor):
        names = {"x": x, "y": self.conv(x), "self": self}
        exec(self.change, names)
        return names["y"]


def trial(model: nn.Module, ranks: int = 1, **data) -> Trial:
    config = config_from({"data": {"train": {"gt": "clean"}, "patch_size": 16, "batch_size": 4, **data}})
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, num_processes=ranks, is_fsdp2=False, autocast=nullcontext
    )
    return Trial(model, "own:Net", config, accelerator)


def validation_images(*sizes: tuple[int, int]) -> ValidationDataset:
    gt = SimpleNamespace(sizes=sizes)  # the only attribute that is used
    return ValidationDataset([], gt, None, list(range(len(sizes))), None, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("y = y[:, :1]", r"returns shape \(2, 1, 16, 16\) .* must return images of shape \(2, 3, 16, 16\)"),
        ("y = y[..., 1:]", r"returns shape \(2, 3, 16, 15\)"),
        ("y = [y]", "returns a list"),
        ("x.clamp_(0, 1)", "changes its input in place"),
        ("assert x.shape[-1] % 9 == 0, 'no ninths'", r"crops of 16x16: AssertionError: no ninths \("),
        ("y = y.detach()", "cannot be trained on crops of 16x16: .* does not require grad"),
    ],
)
def test_model_that_cannot_be_trained_is_refused(change, words):
    with pytest.raises(UserError, match=f"^model: 'own:Net' .*{words}"):
        trial(Own(change)).train()
    trial(Own()).train()  # the control


def test_a_model_that_fails_with_channels_last_is_refused_with_the_key():
    tried = trial(Own("self.conv(x).view(2, -1)"))
    with pytest.raises(UserError, match=r"crops of 16x16: .* memory layout .*, set train\.channels_last=false$"):
        tried.train()
    tried.config.train.channels_last = False
    tried.train()


def test_crops_of_every_stage_are_tried():
    stages = [{"until_epoch": 1, "patch_size": 8}]
    model = partial(Own, "assert x.shape[-1] > 8, 'too small'")
    with pytest.raises(UserError, match="crops of 8x8: AssertionError: too small"):
        trial(model(), stages=stages).train()
    trial(model()).train()


def test_unused_parameters_are_refused_with_several_processes():
    with pytest.raises(UserError, match=r"does not depend on spare\.weight, spare\.bias; DDP cannot train"):
        trial(Own(), ranks=2).train()
    trial(Own()).train()
    sharded = trial(Own(), ranks=2)
    sharded.accelerator.is_fsdp2 = True
    sharded.train()
    frozen = Own()
    frozen.spare.requires_grad_(False)
    trial(frozen, ranks=2).train()


def test_model_without_parameters_or_with_lazy_ones_is_refused():
    with pytest.raises(UserError, match="no parameters to train"):
        trial(nn.Identity()).train()
    with pytest.raises(UserError, match="lazy layers"):
        trial(nn.LazyConv2d(3, 3, padding=1)).train()
    with pytest.raises(UserError, match="lazy layers"):  # without parameters, it has lazy buffers alone
        trial(nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyBatchNorm2d(affine=False))).train()


@pytest.mark.parametrize("line", ["self.register_buffer('grid', x[0])", "self.extra = self.conv.bias"])
def test_model_whose_forward_adds_what_is_saved_is_refused(line):
    name = "grid" if "grid" in line else "extra"
    with pytest.raises(UserError, match=rf"^model: 'own:Net' adds, removes or resizes {name} in its forward, .*"):
        trial(Own(line)).train()
    trial(Own(line.replace("x[0]", "x[0], persistent=False").replace("self.extra", "extra"))).train()


def test_model_that_shares_layers_between_its_instances_cannot_be_averaged():
    first, second = Own(), Own()
    check_copy(first, second, "own:Net")
    first.spare = second.spare
    with pytest.raises(UserError, match=r"^model: 'own:Net' shares spare\.weight, spare\.bias .*train\.ema_decay"):
        check_copy(first, second, "own:Net")
    second.spare.requires_grad_(False)  # frozen layers may be shared
    check_copy(first, second, "own:Net")
    with pytest.raises(UserError, match=r"^model: 'own:Net' differs each time"):
        check_copy(first, Own(channels=4), "own:Net")


def test_validation_sizes_are_tried_as_validation_uses_them():
    needs_eights = trial(Own("assert x.shape[-1] % 8 == 0, 'no eighths'"))
    needs_eights.train()
    needs_eights.restore(validation_images((16, 24), (30, 40)), Protocol())
    with pytest.raises(UserError, match=r"cannot restore validation images of 17x32.*no eighths"):
        needs_eights.restore(validation_images((16, 24), (32, 17)), Protocol())
    needs_eights.restore(validation_images((40, 48)), Protocol(tile=32, tile_overlap=16))
    with pytest.raises(UserError, match="returns shape"):
        trial(Own("y = y if self.training else y[..., 1:]")).restore(validation_images((16, 16)), Protocol())


def test_trial_that_runs_out_of_memory_is_skipped():
    greedy = trial(Own("raise MemoryError('9 GiB')"), ranks=2)
    greedy.train()
    greedy.restore(validation_images((16, 16)), Protocol())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Net(:", r"invalid syntax \(.*\.py, line 2\)"),
        ("raise KeyError('boom')", r"KeyError: 'boom' \(.*\.py, line 2\)"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch, text, words):
    name = f"module{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(f"\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"model.name: cannot import '{name}:Net' .*{words}"):
        build_model(f"{name}:Net", {}, 3)


def test_a_module_in_the_present_folder_is_told_how_to_be_found(tmp_path, monkeypatch):
    (tmp_path / "mynets7.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Python does not search this folder for mynets7\.py; put PYTHONPATH=\."):
        build_model("mynets7:Net", {}, 3)
    (tmp_path / "package7").mkdir()
    with pytest.raises(UserError, match="Python does not search this folder for package7"):
        build_model("package7.nets:Net", {}, 3)
    with pytest.raises(UserError, match="No module named 'mynets8'"):  # the control
        build_model("mynets8:Net", {}, 3)


class Refuses(nn.Module):
    def __init__(self, width: int = 7):
        super().__init__()
        assert width % 4 == 0, "fours only"


def test_a_class_that_cannot_be_built_is_told_with_its_line():
    with pytest.raises(UserError, match=r"AssertionError: fours only \(test_model_check\.py, line \d+\)"):
        build_model("test_model_check:Refuses", {}, 3)
    build_model("test_model_check:Refuses", {"width": 4}, 3)


def mean_of_batch(output, gt):
    return (output - gt).abs().mean()


def of_pixels(output, gt):
    return (output - gt).abs()


def in_columns(output, gt):
    return (output - gt).abs().flatten(1).mean(1, keepdim=True)


def nothing(output, gt):
    return None


def without_gradient(output, gt):
    return per_sample(output.detach(), gt)


def per_sample(output, gt):
    return (output - gt).abs().flatten(1).mean(1)


def test_a_loss_gives_one_value_per_sample():
    shapes = {"mean_of_batch": "()", "of_pixels": "(2, 3, 8, 8)", "in_columns": "(2, 1)", "nothing": "NoneType"}
    for name, shape in shapes.items():
        with pytest.raises(UserError) as refused:
            build_loss({f"test_model_check:{name}": 1.0})
        assert f"returns {shape} for 2 samples, but must return one value per sample" in str(refused.value)
    with pytest.raises(UserError, match="has no gradient with respect to the output"):
        build_loss({"test_model_check:without_gradient": 1.0})
    loss = build_loss({"test_model_check:per_sample": 2.0})  # the control
    assert loss(torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)).tolist() == [2] * 3


def test_a_loss_of_ours_tells_its_mistakes_as_they_are():
    with pytest.raises(UserError, match=r"^loss\.perceptual\.weights: missing"):
        build_loss({"perceptual": {}})
