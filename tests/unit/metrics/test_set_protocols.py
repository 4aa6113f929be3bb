"""Several validation sets: their protocols, the means of their scores, and which of them is monitored."""

import math
import re

import numpy as np
import pytest
import torch

from accel_restore.config.load import config_from
from accel_restore.errors import UserError
from accel_restore.metrics.protocol import Protocol
from accel_restore.metrics.validation_sets import SetProtocols, mean_scores
from accel_restore.state import Scores

SETS = {"set5": {"gt": "a", "input": "b", "crop_border": 2, "y_channel": True}, "noisy": {"gt": "c", "quantize": True}}


def protocols_of(val, data=None, **validation) -> SetProtocols:
    sections = {"data": {"train": {"gt": "x"}, "val": val, **(data or {})}, "validation": validation}
    return SetProtocols.of(config_from(sections))


def test_a_set_is_scored_by_the_section_validation_with_its_own_values():
    found = protocols_of(SETS, crop_border=4, tile=128)
    set5, noisy = found.sets["set5"], found.sets["noisy"]
    assert (set5.crop_border, set5.y_channel, set5.quantize, set5.tile) == (2, True, False, 128)
    assert (noisy.crop_border, noisy.y_channel, noisy.quantize) == (4, False, True)
    assert not set5.degradation and noisy.degradation[0]["name"] == "gaussian_noise"
    assert found.smallest_sides(13) == {"set5": 15, "noisy": 19}
    assert found.smallest_sides(17) == {"set5": 17, "noisy": 19}


@pytest.mark.parametrize("key", ["y_channel", "quantize"])
@pytest.mark.parametrize(("off", "value"), [(False, False), ("off", False), ("No", False), (None, True), (True, True)])
def test_a_set_can_turn_off_what_the_section_validation_turns_on(key, off, value):
    found = protocols_of({"a": {"gt": "x", key: off}, "b": {"gt": "y"}}, **{key: True})
    assert getattr(found.sets["a"], key) is value and getattr(found.sets["b"], key) is True


@pytest.mark.parametrize(
    ("val", "everywhere", "key"),
    [
        ({"a": {"gt": "x", "quantize": True}, "b": {"gt": "y"}}, False, "data.val.a.quantize"),
        ({"a": {"gt": "x"}, "b": {"gt": "y"}}, True, "validation.quantize"),
        ({"gt": "x", "quantize": True}, False, "data.val.quantize"),
    ],
)
def test_the_key_that_rounds_float_pixels_is_named(val, everywhere, key):
    found = protocols_of(val, quantize=everywhere)
    assert "quantize_key" not in found.describe()
    with pytest.raises(UserError, match=f"^{re.escape(key)}: rounds to 8 bits, but gt"):
        found.for_pixels(dict.fromkeys(found.sets, np.dtype(np.float32)), (0.0, 1.0))


@pytest.mark.parametrize(
    ("train", "val", "key"),
    [
        ({"gt": "x"}, {"a": {"gt": "x"}}, "data.val.a"),
        ({"gt": "x"}, {"gt": "x"}, "data.val"),
        ({"gt": "x"}, None, "data.train"),
        ({"a": {"gt": "x"}}, None, "data.train.a"),
    ],
)
def test_the_set_with_float_pixels_is_named(train, val, key):
    found = protocols_of(val, {"train": train}, quantize=True)
    with pytest.raises(UserError, match=f"but gt of {key} has float pixels"):
        found.for_pixels(dict.fromkeys(found.sets, np.dtype(np.float32)), (0.0, 1.0))


def test_what_the_sets_have_in_common_is_described_once():
    found = protocols_of({name: {**one, "crop_border": 2} for name, one in SETS.items()}, crop_border=4)
    assert (found.whole.crop_border, found.whole.y_channel) == (2, False)
    assert found.describe()["input"] == "differs between the sets" and "over the sets" in found.describe()["average"]
    assert found.describe_sets()["set5"] == found.sets["set5"].describe()
    alone = protocols_of(SETS["set5"])
    assert alone.describe() == alone.whole.describe() == alone.sets[""].describe()
    assert alone.describe_sets() == {}


def test_the_key_of_a_degradation_of_its_own_is_named():
    steps = [{"name": "gaussian_noise", "sigma": 50}]
    found = protocols_of({"a": {"gt": "x", "degradation": steps}, "b": {"gt": "x"}})
    assert found.sets["a"].describe()["input"].startswith("made by data.val.a.degradation;")
    assert found.sets["a"].describe()["degradation"][0]["sigma"] == 50
    assert found.sets["b"].describe()["input"].startswith("made by data.degradation;")


def test_sets_held_out_of_training_sets_have_their_names_and_degradations():
    steps = [{"name": "gaussian_noise", "sigma": 50}]
    train = {"clean": {"gt": "x", "degradation": steps}, "real": {"gt": "y", "input": "z"}}
    found = protocols_of(None, {"train": train}, monitor="real.psnr").sets
    assert [protocol.degradation for protocol in found.values()] == [tuple(steps), ()]


def test_sets_share_the_networks_of_their_metrics():
    found = protocols_of(SETS)
    built = [protocol.scores["psnr"].args[0] for protocol in (found.whole, *found.sets.values())]
    assert all(measure is built[0] for measure in built)
    assert found.sets["set5"].built["psnr"] is found.whole.built["psnr"]


def test_the_scores_of_the_whole_are_means_over_the_means_of_the_sets():
    rows = torch.rand(5, 6, dtype=torch.float64)
    scores = mean_scores(rows, ["a", "a", "a", "b", "b"], ("psnr",), ("psnr",), ("l1", "ssim"))
    means = torch.stack([rows[:3].mean(0), rows[3:].mean(0)])
    assert list(scores.sets) == ["a", "b"] and scores.sets["b"].loss == float(means[1, 0])
    assert scores.sets["a"].terms == {"l1": float(means[0, 3]), "ssim": float(means[0, 4])}
    assert scores.metrics == {"psnr": float(means.mean(0)[1])} and scores.input_metrics == {"psnr": means.mean(0)[2]}
    assert scores.metrics["psnr"] != float(rows.mean(0)[1])
    assert scores.record()["sets"]["b"]["input_psnr"] == float(means[1, 2])


def test_one_set_without_a_name_has_the_mean_over_its_images_and_no_other_scores():
    rows = torch.rand(7, 4, dtype=torch.float64)
    scores = mean_scores(rows, [""] * 7, ("psnr",), ("psnr",), ())
    assert [scores.loss, scores.metrics["psnr"], scores.input_metrics["psnr"]] == rows.mean(0).tolist()[:3]
    assert scores.sets == {} and scores.record() == scores.flat()


@pytest.mark.parametrize(
    ("monitor", "value"), [("loss", 1), ("psnr", -30), ("a.loss", 3), ("a.psnr", -20), ("a.m:b", 7), ("m:b", 5)]
)
def test_the_monitored_value_is_that_of_a_set_or_of_the_whole(monitor, value):
    one = Scores(3, {"psnr": 20, "m:b": 7}, {}, {})
    scores = Scores(1, {"psnr": 30, "m:b": 5}, {}, {}, {"a": one, "m": one})
    protocol = Protocol(metrics=("psnr",))
    protocol.built_once["metric", "m:b"] = type("Mine", (), {"higher_is_better": False})
    protocol = Protocol(metrics=("psnr", "m:b"), built_once=protocol.built_once)
    assert protocol.monitored_value(scores, monitor) == value
    assert protocol.monitored_value(None, monitor) == math.inf


@pytest.mark.parametrize(
    ("val", "monitor", "message"),
    [
        (SETS, "set6.psnr", "'set6.psnr': no validation set is 'set6'; the sets are set5, noisy; name one of them"),
        (SETS, "set5.psnrr", r"validation\.monitor: unknown choice 'psnrr'.* did you mean 'psnr'"),
        (SETS, "set5.lpips", "'lpips' is not one of the metrics; add it to validation.metrics"),
        (SETS, "set5", r"validation\.monitor: unknown choice 'set5'"),
        ({"gt": "x"}, "set5.psnr", "no validation set is 'set5'; there are no validation sets with names"),
        (None, "set5.psnr", "there are no validation sets with names"),
    ],
)
def test_an_unknown_set_or_score_to_monitor_is_rejected(val, monitor, message):
    with pytest.raises(UserError, match=message):
        protocols_of(val, monitor=monitor)
    protocols_of(SETS, monitor="noisy.loss")


@pytest.mark.parametrize(
    ("one", "data", "message"),
    [
        ({"crop_border": -1}, {}, r"data\.val\.a\.crop_border: "),
        ({"y_channel": True}, {"channels": 1}, r"data\.val\.a\.y_channel: needs colour images"),
        ({"tile": 40}, {}, r"data\.val\.a\.tile: is 40; it must be at least validation\.tile_overlap \+ 16"),
        ({"input": "y", "degradation": [{"name": "jpeg"}]}, {}, r"data\.val\.a\.degradation: makes the inputs of sets"),
        ({"metrics": ["psnr"]}, {}, r"data\.val\.a\.metrics: unknown key"),
    ],
)
def test_mistakes_in_a_set_are_reported_with_its_key(one, data, message):
    with pytest.raises(UserError, match=message):
        protocols_of({"a": {"gt": "x", **one}}, data)
