"""Learning rates, parameter groups and weight averages in real runs, on any number of ranks."""

import json

import pytest
import torch
from forked import launch
from runs import epochs_of, json_lines, last_weights, make_photos, run_folder, small_config, succeed

PHOTOS = 14, 1  # training, validation
EPOCHS = 4
CASES = [("cosine", ranks, accumulation) for ranks in (1, 2, 3) for accumulation in (1, 3)] + [("constant", 2, 3)]


def torch_rates(name: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.001)
    scheduler = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS, eta_min=1e-6),
    }[name]()
    rates = []
    for _ in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("name", "ranks", "accumulation"), CASES)
def test_learning_rates_equal_those_of_torch_on_every_rank(photos, tmp_path, name, ranks, accumulation):
    config = small_config(
        *photos,
        tmp_path,
        data={"batch_size": 2},
        scheduler={"name": name},
        train={"epochs": EPOCHS, "gradient_accumulation_steps": accumulation},
        validation={"num_samples": 0},
        checkpoint={"every_epochs": EPOCHS},
    )
    succeed(launch(config, ranks=ranks))
    expected = torch_rates(name)
    assert [line["lr"] for line in epochs_of(config)] == expected
    assert all(line["scheduler_steps"] == 1 for line in epochs_of(config))
    steps_per_epoch = -(-14 // (2 * ranks * accumulation))
    lines = [line for line in json_lines(run_folder(config) / "metrics.jsonl") if line["event"] == "train"]
    assert len(lines) == EPOCHS * steps_per_epoch * ranks
    assert all(line["lr"] == expected[line["epoch"]] for line in lines)


@pytest.mark.parametrize("warm_up", [1, 2])
def test_the_plan_warns_if_warm_up_outlasts_the_run(photos, tmp_path, warm_up):
    sections = {"optimizer": {"lr": 0.001}, "scheduler": {"warmup_epochs": warm_up}, "train": {"epochs": 2}}
    config = small_config(*photos, tmp_path, **sections)
    succeed(launch(config))
    plan = json.loads((run_folder(config) / "plan.json").read_text())["plan"]
    notes = [text for what, text in plan if what == "note"]
    said = "scheduler.warmup_epochs is 2, the epochs of the run are 2: the rate never reaches optimizer.lr; for a "
    said += "short try, set scheduler.warmup_epochs=0"
    assert notes == ([said] if warm_up == 2 else [])
    rates = [line["lr"] for line in epochs_of(config)]
    assert (max(rates) < config["optimizer"]["lr"]) == (warm_up == 2)


@pytest.mark.parametrize(("ranks", "optimizer"), [(1, "sgd"), (2, "muon")])
def test_parameter_groups_and_ema_warmup_continue_bit_identically(tmp_path, ranks, optimizer):
    photos = make_photos(tmp_path / "train", 13), make_photos(tmp_path / "val", 1, seed=1)

    def configuration(name: str, **average: object) -> dict:
        return small_config(
            *photos,
            tmp_path,
            run={"name": name},
            data={"batch_size": 4 // ranks},
            model={"name": "dncnn", "width": 16, "depth": 3},
            optimizer={"name": optimizer, "weight_decay": 0.3, "no_decay": ["biases"]},
            train={"ema_decay": 0.95, "ema_warmup": True, **average},
            checkpoint={"every_steps": 3, "keep": 9},
        )

    whole, killed, cold = configuration("whole"), configuration("killed"), configuration("cold", ema_warmup=False)
    succeed(launch(whole, "--audit", ranks=ranks))
    assert launch(killed, "--audit", ranks=ranks, mode="kill:5").returncode != 0
    assert list((run_folder(killed) / "checkpoints").glob("step-*"))  # that of step 4 may not be written yet
    succeed(launch(killed, "--audit", ranks=ranks))
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (last_weights(config, file) for config in (whole, killed))
        assert list(one) == list(other) and all(one[name].equal(other[name]) for name in one), file
    succeed(launch(cold, ranks=ranks))  # control
    assert not last_weights(cold, "ema.safetensors")["body.0.weight"].equal(
        last_weights(whole, "ema.safetensors")["body.0.weight"]
    )
