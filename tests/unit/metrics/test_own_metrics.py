"""Metrics named by import path: every kind of object, by the same protocol as ours; and what broken ones report."""

import math
import random
import re

import numpy as np
import pytest
import torch
import torchmetrics
from configurations import LEAST, problems
from torch import nn

from accel_restore.config.load import config_from, to_yaml
from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.metrics import Metric
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.psnr_ssim import luma
from accel_restore.state import Scores

HERE = "test_own_metrics"


def mae(output, gt, factor=1.0):
    return factor * (output - gt).abs().flatten(1).mean(1)


mae.higher_is_better = False


def contrast(output, power=1):
    return output.flatten(1).std(1) ** power


def optional_gt(output, gt=None):
    return mae(output, gt)


def any_images(*images):
    return mae(*images)


class Counted:
    """Needs images of 7 pixels; scores colours, also where the protocol asks for the luma."""

    higher_is_better, smallest_side, of_luma = True, 7, False

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, output, gt):
        assert min(gt.shape[-2:]) >= 7
        return float(gt.shape[1] - mae(output, gt, self.factor))


class Network(nn.Module):
    """Has float32 weights and the interface of pyiqa's metrics, which `create` makes, too."""

    lower_better = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.conv.weight, 2.0)

    def forward(self, target, ref=None, **options):
        assert not self.training
        return mae(*(self.conv(image.mean(1, keepdim=True)) for image in (target, ref)))[:, None]


def create(metric_name, device=None, **options):
    return {"abs": Network, "count": Counted}[metric_name]()


module = Network()
metric = Metric(lambda weights: mae, "mean absolute error", smallest_side=3, higher_is_better=False)
bound = Counted().__call__


def of_float64(output, gt):
    assert output.dtype == gt.dtype == torch.float64
    return mae(output, gt)


exact = Metric(lambda weights: of_float64, "in float64")


def drawing(output, gt):
    return mae(output, gt) + torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002


def overwriting(output, gt):
    return output.sub_(gt).abs_().flatten(1).mean(1)


def protocol(*metrics, channels: int = 3, **validation) -> Protocol:
    data = {**LEAST["data"], "channels": channels}
    entries = [
        f"{HERE}:{named}" if isinstance(named, str) and ":" not in named and named != "psnr" else named
        for named in metrics
    ]
    return Protocol.of(config_from({"data": data, "validation": {"metrics": entries, **validation}}))


def entry(name: str, **more) -> dict:
    return {"name": name if ":" in name else f"{HERE}:{name}", **more}


def images(side: int = 20, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(1, channels, side, side + 3, generator=generator) for _ in range(2))


KINDS = {
    "function": ("mae", lambda o, g: mae(o, g)),
    "function with arguments": (entry("mae", factor=3), lambda o, g: 3 * mae(o, g)),
    "without reference": ("contrast", lambda o, g: o.std()),
    "without reference, with arguments": (entry("contrast", power=2), lambda o, g: o.std() ** 2),
    "optional reference": ("optional_gt", lambda o, g: mae(o, g)),
    "any number of images": ("any_images", lambda o, g: mae(o, g)),
    "class": ("Counted", lambda o, g: 3 - mae(o, g)),
    "class with arguments": (entry("Counted", factor=2), lambda o, g: 3 - mae(o, g, 2)),
    "bound method": ("bound", lambda o, g: 3 - mae(o, g)),
    "class of modules": ("Network", lambda o, g: 2 * mae(o.mean(1), g.mean(1))),
    "module": ("module", lambda o, g: 2 * mae(o.mean(1), g.mean(1))),
    "factory": (entry("create", metric_name="abs"), lambda o, g: 2 * mae(o.mean(1), g.mean(1))),
    "Metric": ("metric", lambda o, g: mae(o, g)),
    "Metric in float64": ("exact", lambda o, g: mae(o, g)),
    "class of torchmetrics": (
        entry("torchmetrics.image:StructuralSimilarityIndexMeasure", data_range=1.0),
        lambda o, g: torchmetrics.functional.image.structural_similarity_index_measure(o, g, data_range=1.0),
    ),
    "class of torchmetrics without reference": (
        "torchmetrics.image:TotalVariation", lambda o, g: torchmetrics.functional.image.total_variation(o)
    ),
    "function of torchmetrics": (
        "torchmetrics.functional.image:spectral_angle_mapper",
        lambda o, g: torchmetrics.functional.image.spectral_angle_mapper(o, g),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_metric_scores_each_image_alone(kind):
    named, expected = KINDS[kind]
    own = protocol("psnr", named)
    own.try_own(torch.device("cpu"))
    (score,) = (own.scores[name] for name in own.metrics[1:])
    with torch.no_grad():
        for side in (20, 31):  # a second image does not depend on the first
            output, gt = images(side)
            value = score(output, gt)
            assert value.shape == (1,)
            assert value.item() == pytest.approx(float(expected(output, gt)), rel=1e-5)


def test_own_metrics_follow_the_protocol():
    output, gt = images()
    inside = [image[..., 2:-2, 2:-2] for image in (output, gt)]
    score = protocol("mae", crop_border=2).scores[f"{HERE}:mae"]
    assert score(output * 3 - 1, gt) == pytest.approx(float(mae((inside[0] * 3 - 1).clamp(0, 1), inside[1])))
    levels = [(image * 255).round() / 255 for image in (output, gt)]
    assert protocol("mae", quantize=True).scores[f"{HERE}:mae"](output, gt) == pytest.approx(float(mae(*levels)))
    of_luma = protocol("mae", "Counted", y_channel=True)
    assert of_luma.scores[f"{HERE}:mae"](output, gt) == pytest.approx(float(mae(luma(output), luma(gt))))
    assert of_luma.scores[f"{HERE}:Counted"](output, gt) == pytest.approx(float(3 - mae(output, gt)))
    gray = protocol("Counted", channels=1).scores[f"{HERE}:Counted"]
    assert gray(output[:, :1], gt[:, :1]) == pytest.approx(float(1 - mae(output[:, :1], gt[:, :1])))


def test_attributes_are_read_from_functions_classes_objects_and_factories():
    own = protocol("mae", "contrast", "Counted", "Network", entry("create", metric_name="count"), "metric")
    found = [(metric.higher_is_better, metric.smallest_side, metric.of_luma) for metric in own.built.values()]
    assert found == [
        (False, 1, True), (None, 1, True), (True, 7, False), (False, 1, True), (True, 7, False), (False, 3, True)
    ]  # fmt: skip
    assert own.smallest_side == 7 and protocol("Counted", crop_border=4).smallest_side == 15
    assert protocol("torchmetrics.image:SpectralAngleMapper").built.popitem()[1].higher_is_better is False


def test_best_weights_follow_the_direction_of_the_monitored_metric():
    own = protocol("psnr", "mae", entry("create", metric_name="count", title="count"))
    for name, better, worse in (("psnr", 30.0, 29.0), (f"{HERE}:mae", 0.1, 0.2), ("count", 2.0, 1.0)):
        first, second = (Scores(loss, {name: value}, {}, {}) for loss, value in ((1.0, better), (0.5, worse)))
        assert own.monitored_value(first, name) < own.monitored_value(second, name)
    assert own.monitored_value(None, "psnr") == math.inf
    own.check_direction(f"{HERE}:mae", "validation.monitor")
    with pytest.raises(UserError, match=r"validation\.monitor: 'test_own_metrics:contrast' has no attribute higher_is"):
        protocol("contrast").check_direction(f"{HERE}:contrast", "validation.monitor")


def test_a_metric_neither_changes_images_for_others_nor_the_random_numbers_of_the_run():
    own = protocol("overwriting", "drawing", "mae")
    own.try_own(torch.device("cpu"))
    (output, gt), state = images(), torch.get_rng_state()
    before = output.clone(), gt.clone()
    values = [[own.scores[f"{HERE}:{name}"](output, gt) for name in ("overwriting", "drawing", "mae")] for _ in "12"]
    assert values[0] == values[1] and values[0][0] == values[0][2]
    assert output.equal(before[0]) and gt.equal(before[1]) and torch.get_rng_state().equal(state)


# What broken metrics report -------------------------------------------------------------------------------------------


class FailsInInit:
    def __init__(self, size=0):
        raise OSError("no weights")


class NotCallable:
    pass


class WrongAttribute:
    higher_is_better = "no"

    def __call__(self, output, gt):
        return mae(output, gt)


class Counting:
    calls = 0

    def __call__(self, output, gt):
        self.calls += 1
        return mae(output, gt) * self.calls


class OfSets:
    def update(self, imgs, real): ...

    def compute(self): ...

    def reset(self): ...


def fails(output, gt):
    return output @ gt[..., 2:, 2:]


def needs_large_images(output, gt):
    return nn.functional.conv2d(output.mean(1, keepdim=True), torch.ones(1, 1, 12, 12)).flatten(1).mean(1)


needs_large_images.smallest_side = 9


def not_reduced(output, gt):
    return (output - gt).abs()


def of_channels(output, gt):
    return (output - gt).abs().mean((2, 3))


def nothing(output, gt):
    mae(output, gt)


def several(output, gt):
    return mae(output, gt), mae(output, gt)


def not_finite(output, gt):
    return mae(output, gt) / 0


def needs_gradient(output, gt):
    return torch.autograd.grad(mae(output, gt).sum(), output)[0].mean()


def needs_more(output, gt, mask):
    return mae(output, gt)


number = 3

BROKEN = {
    "nowhere:score": r"cannot import 'nowhere:score' \(No module named 'nowhere'\); write package\.module:Name",
    "absent": r"cannot import 'test_own_metrics:absent' \(module 'test_own_metrics' has no attribute 'absent'\)",
    "number": r"validation\.metrics\.0: 3 is not callable; name a function or a class",
    "NotCallable": r"'test_own_metrics:NotCallable' gives a NotCallable, which takes no images",
    "FailsInInit": r"'test_own_metrics:FailsInInit' cannot be built: OSError: no weights \(test_own_metrics.py",
    "WrongAttribute": r"'test_own_metrics:WrongAttribute' has the attribute higher_is_better: 'no'; it must be of type",
    "fails": r"'test_own_metrics:fails' cannot score an image of 192x192: .*\(test_own_metrics.py, line \d+\)",
    "needs_large_images": r"'test_own_metrics:needs_large_images' cannot score an image of 9x9: ",
    "not_reduced": r"'test_own_metrics:not_reduced' returns shape \(1, 3, 192, 192\) for one image; .*shape \(1,\)",
    "of_channels": r"'test_own_metrics:of_channels' returns shape \(1, 3\) for one image",
    "nothing": r"'test_own_metrics:nothing' returns None for one image",
    "several": r"'test_own_metrics:several' returns a tuple for one image",
    "not_finite": r"'test_own_metrics:not_finite' gives inf for an image of 192x192",
    "needs_gradient": r"'test_own_metrics:needs_gradient' cannot score an image of 192x192: .*does not require grad",
    "needs_more": r"validation\.metrics\.0\.mask: missing",
    "Counting": r"'test_own_metrics:Counting' gives [\d.]+ and then [\d.]+ for the same image",
    "OfSets": r"'test_own_metrics:OfSets' scores a set of images, as FID does",
    "torchmetrics.image.fid:FrechetInceptionDistance": r"FrechetInceptionDistance' scores a set of images, as FID does",
    "torchmetrics.image:SpatialDistortionIndex": r"SpatialDistortionIndex' cannot score an image of 192x192",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_metric_is_rejected_with_its_name(name):
    with pytest.raises(UserError, match=BROKEN[name]) as caught:
        own = protocol(name)
        _ = own.scores
        own.try_own(torch.device("cpu"))
    assert str(caught.value).startswith("validation.metrics") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (entry("mae", facto=2), r"validation\.metrics\.0\.facto: unknown key; did you mean '.*\.0\.factor'"),
        (entry("Counted", weight=2), r"validation\.metrics\.0\.weight: unknown key; known keys: factor"),
        (entry("metric", factor=2), r"validation\.metrics\.0\.factor: unknown key; known keys: none"),
        (entry("module", factor=2), r"validation\.metrics\.0\.factor: unknown key; known keys: none"),
        (entry("create", metric_name="abc"), r"validation\.metrics\.0: '.*:create' cannot be built: KeyError"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_rejected_with_their_keys(named, message):
    with pytest.raises(UserError, match=message):
        _ = protocol(named).scores


def test_images_too_small_for_a_metric_are_found_in_the_sizes_of_the_validation_images():
    own = protocol("torchmetrics.image:MultiScaleStructuralSimilarityIndexMeasure")
    own.try_own(torch.device("cpu"))
    with pytest.raises(UserError, match=r"MultiScale.*' cannot score an image of 40x30: "):
        own.try_own(torch.device("cpu"), [(30, 40)])


# In the configuration -------------------------------------------------------------------------------------------------


def test_entries_are_written_as_they_were_given():
    given = ["psnr", "a.b:c", {"name": "a.b:d", "title": None, "k": [1, 2]}, {"name": "a.b:d", "title": "second"}]
    config = config_from({**LEAST, "validation": {"metrics": given, "monitor": "second"}})
    assert config.model_dump(mode="json")["validation"]["metrics"] == given
    assert config_from({**LEAST, "validation": {"metrics": given[:2]}}).validation.metrics[1].label == "a.b:c"
    assert "- a.b:c\n" in to_yaml(config)
    plain = config_from({**LEAST, "validation": {"metrics": [{"name": "psnr"}]}})
    assert plain.model_dump()["validation"]["metrics"] == ["psnr"]
    assert {"type": "string"} in Config.model_json_schema()["$defs"]["Validation"]["properties"]["metrics"]["items"][
        "anyOf"
    ]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"metrics": ["a.b.c"]}, "metrics.0: unknown choice 'a.b.c'; .*; an import path is written 'a.b:c'"),
        ({"metrics": ["pnsr"]}, "metrics.0: unknown choice 'pnsr'; .*; did you mean 'psnr'?"),
        ({"metrics": [5]}, "metrics.0: must be a metric's name, an import path, or a section .*, not 5"),
        ({"metrics": [{"title": "x"}]}, "metrics.0.name: missing"),
        ({"metrics": [{"name": "psnr", "peak": 2}]}, "metrics.0: psnr takes no arguments and no title"),
        ({"metrics": ["a:b", {"name": "a:b", "k": 2}]}, "metrics: 'a:b' is listed twice; give each a title of its own"),
        ({"metrics": [{"name": "a:b", "title": "a b"}]}, "metrics.0: title: must be a word"),
        *(
            ({"metrics": [{"name": "a:b", "title": title}]}, f"metrics.0: title: '{title}' is the name of another")
            for title in ("ssim", "loss", "epoch", "input_x", "x_2", "tile")
        ),
        ({"monitor": "a:b"}, "monitor: 'a:b' is not one of the metrics; add it to validation.metrics"),
        ({"monitor": "lpips"}, "monitor: 'lpips' is not one of the metrics"),
        ({"metrics": [{"name": "a:b", "title": "mine"}], "monitor": "min"}, "monitor: unknown choice 'min'; .*'mine'"),
        ({"metrics": [{"name": "a:b", "title": "mine"}], "monitor": "a:b"}, "monitor: 'a:b' is not one of the metrics"),
    ],
)  # fmt: skip
def test_wrong_entries_are_rejected_before_anything_is_imported(validation, message):
    (line,) = problems(validation=validation)
    assert re.match(f"validation.{message}", line), line


def test_the_protocol_names_path_arguments_and_version():
    described = protocol(
        entry("mae", factor=3, title="mine"),
        entry("torchmetrics.image:StructuralSimilarityIndexMeasure", data_range=1.0),
    ).describe()
    assert described["mine"] == "test_own_metrics:mae(factor=3), in float32"
    name = "torchmetrics.image:StructuralSimilarityIndexMeasure"
    assert described[name] == f"{name}(data_range=1.0), version {torchmetrics.__version__}, in float32"
    assert "own" not in described


def test_control_the_description_of_our_metrics_is_unchanged():
    assert list(Protocol().describe())[:9] == [
        "channels", "crop_border", "y_channel", "quantize", "self_ensemble", "tile", "tile_overlap", "range", "psnr"
    ]  # fmt: skip
