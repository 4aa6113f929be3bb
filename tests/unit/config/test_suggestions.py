"""A key or choice that does not exist is answered with the one that was meant, if one is near."""

import re

import pytest
import yaml
from configurations import LEAST, problems
from runs import ROOT

from accel_restore.config.explain import BASICSR_KEYS
from accel_restore.config.load import config_from, to_yaml
from accel_restore.errors import UserError


def test_a_key_without_a_value_is_answered_with_the_way_to_write_it():
    assert problems("train.epochs", "5") == [
        "train.epochs: has no value; write train.epochs=VALUE, without spaces",
        "'5': is not an override; write key=value, such as data.batch_size=4",
    ]


def test_basicsr_keys_are_answered_with_the_corresponding_keys():
    text = "\n".join(problems("total_iter=1000", "train.optim_g=adam", "data.gt_size=64"))
    for former, key in (("total_iter", "train.max_steps"), ("optim_g", "optimizer"), ("gt_size", "data.patch_size")):
        assert f"{former}: unknown key; BasicSR's {former} corresponds to {key}" in text
    sections = yaml.safe_load(
        to_yaml(config_from({**LEAST, "loss": {"perceptual": {}, "ldl": 1.0}, "adversarial": {}}))
    )
    for key in re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)*", " ".join(BASICSR_KEYS.values())):
        if "." in key or key in sections:
            section, _, rest = key.partition(".")
            assert section in sections and (not rest or rest in sections[section]), key
    table = (ROOT / "configs" / "README.md").read_text().split("| BasicSR | accel_restore |\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(BASICSR_KEYS)


def test_a_dotted_import_path_is_answered_with_the_path_with_a_colon():
    assert problems("model.name=my.nets.Net")[0].endswith("; an import path is written 'my.nets:Net'")
    assert problems("loss={my.loss: 1}")[0].endswith("; an import path is written 'my:loss'")
    assert problems("data.degradation=[{name: my.noise}]")[0].endswith("; an import path is written 'my:noise'")
    for name in ("unett", "my/nets.py", "my..Net"):
        assert "import path" not in problems(f"model.name={name}")[0]


SUGGESTED = {
    "optimizer.lrr": "optimizer.lr", "lr": "optimizer.lr", "train.lr": "optimizer.lr", "batch_size": "data.batch_size",
    "train.batch_size": "data.batch_size", "train.epoch": "train.epochs", "epochs": "train.epochs", "modle": "model",
    "optimiser": "optimizer", "scheduler.warmup": "scheduler.warmup_epochs", "data.patch": "data.patch_size",
    "patch": "data.patch_size",
    "data.train.inptu": "data.train.input", "validation.metric": "validation.metrics", "name": "run.name",
    "data.gt": "data.train.gt",
    "learning_rate": "optimizer.lr", "data.num_workers": "data.num_threads", "train.globalbatchsize":
    "train.global_batch_size", "tracking.wandbb": "tracking.wandb",
    "checkpoint.every_epoch": "checkpoint.every_epochs",
    "scheduler.epochs": "train.epochs", "run.sed": "run.seed",
}  # fmt: skip


NOT_SUGGESTED = [
    "scheduler.per_step", "validation.every_steps", "scheduler.T_max", "checkpoint.frequency", "tracking.comet",
    "foo", "gpus", "run.tags", "data.test", "train.debug", "x", "optimizer.betas2", "scheduler.power", "k" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize(("key", "guess"), SUGGESTED.items())
def test_a_misspelt_or_misplaced_key_is_answered_with_the_right_one(key, guess):
    (line,) = problems(f"{key}=1")
    assert line == f"{key}: unknown key; did you mean '{guess}'?"


@pytest.mark.parametrize("key", NOT_SUGGESTED)
def test_a_key_that_is_near_no_other_gets_no_suggestion(key):
    (line,) = problems(f"{key}=1", optimizer={"name": "sgd"})
    assert ("did you mean" not in line and "known keys: " in line) or len(key) > 500


@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("optimizer.name=adamm", "adam"), ("scheduler.name=cosin", "cosine"), ("scheduler.name=none", None),
        ("scheduler.name=poly", None), ("scheduler.name=one_cycle", None), ("optimizer.name=lion", None),
        ("model.name=nafnett", "nafnet"), ("model.name=swinnir", "swinir"), ("loss.l2=1", None), ("loss.msse=1", "mse"),
        ("train.mixed_precision=fp8", None), ("train.mixed_precision=bf61", "bf16"),
        ("data.degradation=[{name: noise}]", None), ("data.degradation=[{name: jpg}]", "jpeg"),
        ("data.augment=[hflop]", "hflip"), ("data.augment=[flip]", None), ("tracking.wandb=ofline", "offline"),
    ],
)  # fmt: skip
def test_a_choice_is_suggested_only_if_it_is_near(override, guess):
    (line,) = problems(override)
    assert ("did you mean" in line) is (guess is not None) and (guess is None or f"did you mean '{guess}'?" in line)


@pytest.mark.parametrize(("section", "name"), [("model", "dncnn"), ("optimizer", "sgd"), ("scheduler", "step")])
def test_a_name_in_place_of_a_section_is_answered_with_the_key_of_the_name(section, name):
    (line,) = problems(f"{section}={name}")
    assert line == f"{section}: is a section; write {section}.name={name}, or {section}: {{name: {name}}} in a file"
    config_from(LEAST, [f"{section}.name={name}"])


def test_a_key_below_a_value_is_answered_with_the_key_of_the_value():
    for key, remedy in (("train.epochs", "VALUE"), ("run.name", "VALUE"), ("loss.l1", "{...}")):
        (line,) = problems(f"{key}=5", f"{key}.x=5")
        assert line.endswith(f"not a section; write {key}={remedy}")


def test_a_key_of_another_choice_is_not_suggested_again():
    with pytest.raises(UserError, match=r"optimizer\.betas: unknown key; known keys: .*momentum"):
        config_from({"data": {"train": {"gt": "x"}}, "optimizer": {"name": "sgd", "betas": [0.9, 0.9]}})


@pytest.mark.parametrize("wrong", ["train.optimizer=adam", "validation.loss=l1"])
def test_a_section_in_a_wrong_place_is_not_answered_with_that_of_the_discriminator(wrong):
    assert "adversarial" not in "\n".join(problems(wrong))
