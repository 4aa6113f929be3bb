"""The same run on any number of processes: its result depends only on configuration, data and step."""

import pytest
import torch
from forked import launch
from runs import audit_events, epochs_of, last_weights, run_folder, samples_per_step, small_config, succeed

SAMPLES = 61
LAYOUTS = {  # ranks, batch per rank, accumulation: a global batch of 8
    "1x8": (1, 8, 1),
    "2x4": (2, 4, 1),
    "1x4x2": (1, 4, 2),
    "2x2x2": (2, 2, 2),
    "4x2": (4, 2, 1),
}
FLOAT32_LAYOUTS = ("1x8", "2x2x2", "4x2")  # float32 adds rounding: the reference, all combined, most ranks
PHOTOS = SAMPLES, 5  # training, validation


@pytest.fixture(scope="module", params=["float64", pytest.param("float32", marks=pytest.mark.sweep)])
def runs(request, photos, tmp_path_factory):
    """Return the audited runs of one configuration in every layout."""
    out = tmp_path_factory.mktemp(request.param)
    configs = {}
    for name in LAYOUTS if request.param == "float64" else FLOAT32_LAYOUTS:
        ranks, batch_size, accumulation = LAYOUTS[name]
        config = small_config(
            *photos,
            out,
            run={"name": name},
            data={"batch_size": batch_size, "mixup": {"probability": 0.3}},
            train={"epochs": 2, "gradient_accumulation_steps": accumulation, "ema_decay": 0.9},
            validation={"metrics": ["psnr", "ssim"]},
        )
        mode = "float64" if request.param == "float64" else ""
        succeed(launch(config, "--audit", ranks=ranks, mode=mode))
        configs[name] = config
    return request.param, configs


def test_every_step_consumes_the_same_samples(runs):
    steps = {name: samples_per_step(config) for name, config in runs[1].items()}
    assert len(steps["1x8"]) == 2 * 8
    assert len(steps["1x8"][0, 8]) == SAMPLES % 8
    assert all(value == steps["1x8"] for value in steps.values())


def test_every_epoch_uses_every_sample_once_in_another_order(runs):
    for config in runs[1].values():
        steps = samples_per_step(config)
        for epoch in (0, 1):
            ids = [i for (e, _), step in steps.items() if e == epoch for i in step]
            assert sorted(ids) == list(range(SAMPLES))
        assert steps[0, 1] != steps[1, 9]


def test_learning_rates_are_bit_identical(runs):
    rates = {name: [line["lr"] for line in epochs_of(config)] for name, config in runs[1].items()}
    assert rates["1x8"][0] == 0.001 and rates["1x8"][1] < 0.001
    assert all(value == rates["1x8"] for value in rates.values())


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors"])
def test_final_weights_are_equal_up_to_rounding(runs, file):
    precision, configs = runs
    bound = 1e-9 if precision == "float64" else 1e-3
    reference = last_weights(configs["1x8"], file)
    for name, config in configs.items():
        for key, value in last_weights(config, file).items():
            assert value.dtype == getattr(torch, precision)
            difference = (value - reference[key]).norm() / reference[key].norm()
            assert difference <= bound, (name, key, float(difference))


def test_validation_scores_are_equal(runs):
    precision, configs = runs
    tolerance = 1e-6 if precision == "float64" else 1e-3
    reference = epochs_of(configs["1x8"])
    for config in configs.values():
        for line, expected in zip(epochs_of(config), reference, strict=True):
            for key in ("train_loss", "val_loss", "val_psnr", "val_ssim"):
                assert line[key] == pytest.approx(expected[key], rel=tolerance)


def test_the_audit_recorded_the_same_weights_on_all_ranks(runs):
    for config in runs[1].values():
        assert (run_folder(config) / "audit.json").exists()
        ranks = audit_events(config)
        hashes = [[(e["op"], e["step"], e["weights"]) for e in events] for events in ranks]
        assert all(value == hashes[0] for value in hashes)
