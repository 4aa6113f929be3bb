"""Another choice has its own arguments; every word for off is accepted."""

import re

import jsonschema
import pytest
from configurations import LEAST, problems, value_at
from runs import ROOT

from accel_restore.config.load import config_from, load_config
from accel_restore.config.model import Model
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, SGD, Exponential
from accel_restore.config.schema import Config
from accel_restore.registry import MODELS

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def test_a_changed_name_forgets_all_that_the_file_says_about_the_former_choice():
    tree = {
        **LEAST, "model": {"name": "unet", "width": 8}, "optimizer": {"name": "adamw", "lr": 0.5, "betas": [0.5, 0.6]},
        "scheduler": {"name": "step", "step_size": 3, "gamma": 0.1, "warmup_epochs": 9},
    }  # fmt: skip
    overrides = ["model.depth=5", "model.name=dncnn", "optimizer.name=sgd", "optimizer.momentum=0.9",
                 "scheduler.name=exponential"]  # fmt: skip
    config = config_from(tree, overrides)
    assert config.model.arguments == {"depth": 5}
    assert config.optimizer == SGD(momentum=0.9) and config.scheduler == Exponential()
    assert config_from(tree, ["model.name=unet"]).model.arguments == {"width": 8}
    assert config_from(tree, ["optimizer.name=sgd", "optimizer.name=adamw"]).optimizer.lr == 0.5  # the last one wins
    assert config_from(tree, ["optimizer={name: adam, lr: 3}", "optimizer.name=sgd"]).optimizer == SGD()
    assert tree["optimizer"]["lr"] == 0.5


def test_a_changed_name_in_a_list_of_steps_forgets_the_arguments_of_the_former_step():
    steps = [{"name": "gaussian_noise", "sigma": 1}, {"name": "choice", "of": [{"name": "jpeg", "quality": 5}]}]
    tree = {"data": {"train": {"gt": "a"}, "degradation": steps}}
    overrides = ["data.degradation.0.name=quantize", "data.degradation.1.of.0.name=gaussian_noise",
                 "data.degradation.1.of.0.sigma=7"]  # fmt: skip
    first, second = config_from(tree, overrides).data.degradation
    assert (first.name, first.arguments) == ("quantize", {})
    assert second.arguments == {"of": [{"name": "gaussian_noise", "sigma": 7}]}


def test_a_name_for_the_model_of_a_checkpoint_keeps_the_checkpoint():
    tree = {**LEAST, "model": {"checkpoint": "a.pth"}}
    for name in MODELS:
        model = config_from(tree, [f"model.name={name}"]).model
        assert (model.name, model.checkpoint) == (name, "a.pth")
    tree = {**LEAST, "model": {"name": "unet", "checkpoint": "a.pth"}}
    assert config_from(tree, ["model.name=dncnn"]).model.checkpoint is None
    assert config_from({**LEAST, "run": {"name": "a", "seed": 5}}, ["run.name=b"]).run.seed == 5


CHOICES = {
    **{("optimizer", name): section() for name, section in OPTIMIZER_SECTIONS.items()},
    **{("scheduler", name): section() for name, section in SCHEDULE_SECTIONS.items()},
    **{("model", name): Model(name=name) for name in MODELS},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_another_choice_than_a_recipes_has_its_own_defaults(path):
    recipe = load_config(path)
    for (section, name), expected in CHOICES.items():
        config = load_config(path, [f"{section}.name={name}", "validation.every_epochs=1"])
        same = getattr(recipe, section).name == name
        assert getattr(config, section) == (getattr(recipe, section) if same else expected), (section, name)


@pytest.mark.parametrize("override", ["model.name=unet", "model.name='unet'"])
def test_an_unchanged_name_keeps_the_arguments(override):
    former = {"width": 8} if override == "model.name=unet" else {"name": "unet", "width": 8}
    assert config_from({**LEAST, "model": former}, [override]).model.arguments == {"width": 8}


def test_an_import_path_opens_its_section_and_is_not_imported():
    overrides = ["optimizer.name=nowhere.at:All", "optimizer.anything=[1, 2]", "scheduler.name=x:y", "scheduler.peak=3"]
    config = config_from({**LEAST, "optimizer": {"lr": 5.0}}, overrides)
    assert (config.optimizer.name, config.optimizer.lr) == ("nowhere.at:All", None)  # null: its own default
    assert config.optimizer.arguments == {"anything": [1, 2]}
    assert (config.scheduler.arguments, config.scheduler.warmup_epochs) == ({"peak": 3}, 0)
    assert config_from(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.name='a b:c'", "optimizer.name: 'a b:c' is not an import path; write package.module:Name"),
        ("scheduler.name='a:'", "scheduler.name: 'a:' is not an import path; write package.module:Name"),
        ("optimizer.name=torch.optim.RAdam", "an import path is written 'torch.optim:RAdam'"),
        ("optimizer={name: 'a:b', lr: -1}", "optimizer.lr: input should be greater than 0, not -1"),
        ("optimizer={name: 'a:b', no_decay: 3}", "optimizer.no_decay: input should be a valid list, not 3"),
        ("scheduler={name: 'a:b', warmup_epochs: x}", "scheduler.warmup_epochs: input should be a valid integer"),
        ("callbacks=mypackage:Alarm", "not 'mypackage:Alarm'; put it in brackets: [...]"),
        ("callbacks=[Alarm]", "callbacks.0.name: 'Alarm' is not an import path such as package.module:Name"),
        ("callbacks=[mypackage.Alarm]", "an import path is written 'mypackage:Alarm'"),
        ("scheduler.name=poly", "others have import paths, such as torch.optim.lr_scheduler:PolynomialLR"),
    ],
)
def test_a_wrong_import_path_or_common_key_is_rejected_with_its_key(override, said):
    (line,) = problems(override)
    assert said in line


def test_the_schema_has_sections_by_name_and_one_for_import_paths():
    schema = Config.model_json_schema()
    named, by_path = schema["properties"]["optimizer"]["oneOf"]
    assert set(named["discriminator"]["mapping"]) == set(OPTIMIZER_SECTIONS)
    own = schema["$defs"][by_path["$ref"].rpartition("/")[2]]
    assert own["additionalProperties"] is True
    assert re.match(own["properties"]["name"]["pattern"], "pytorch_optimizer:SOAP")
    assert not re.match(own["properties"]["name"]["pattern"], "adamw")


@pytest.mark.parametrize(
    "section",
    [{"optimizer": {"lr": 0.1}}, {"optimizer": {"name": "sgd"}}, {"scheduler": {"min_lr": 0.0}}, {"loss": "l1"}],
)
def test_the_schema_accepts_what_the_program_accepts(section):
    tree = {**LEAST, **section}
    config_from(tree)
    jsonschema.validate(tree, Config.model_json_schema())


def test_control_the_schema_refuses_a_key_of_another_optimizer():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**LEAST, "optimizer": {"momentum": 0.9}}, Config.model_json_schema())


@pytest.mark.parametrize(
    ("override", "example"),
    [
        ("train.early_stopping=5", "{patience: 20}"),
        ("data.val=photos", "{gt: FOLDER}"),
        ("data.stages=[3]", "{key: value}"),
        ("adversarial=true", "{loss: vanilla}"),
    ],
)
def test_a_value_in_place_of_a_section_is_refused_with_an_example(override, example):
    (line,) = problems(override)
    assert f"must be a section such as {example}" in line


OFF = ["no", "off", "false", "False", "none", "None", "null", "~", "'off'", ""]


WITH_OFF = {
    "tracking.wandb": "disabled", "train.mixed_precision": "no", "run.resume": "never", "data.augment": [],
    "validation.metrics": [], "data.stages": [], "train.freeze": [], "optimizer.no_decay": [], "data.mixup": None,
    "train.max_grad_norm": None, "train.ema_decay": None, "validation.tile": None, "checkpoint.every_steps": None,
    "data.max_images": None, "data.val": None,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WITH_OFF.items())
def test_every_key_that_can_be_off_accepts_every_word_for_it(key, value, tmp_path):
    for word in OFF:
        assert value_at(config_from(LEAST, [f"{key}={word}"]), key) == value, word
    section, _, name = key.partition(".")
    file = tmp_path / "off.yaml"
    file.write_text(f"{'' if section == 'data' else 'data: {train: {gt: a}}'}\n{section}:\n  {name}: off\n"
                    f"{'  train: {gt: a}' if section == 'data' else ''}\n")  # fmt: skip
    assert value_at(load_config(file), key) == value


def test_true_means_the_default_choice_where_there_is_one():
    for word in ("true", "yes", "on"):
        assert config_from(LEAST, [f"tracking.wandb={word}"]).tracking.wandb == "auto"
        assert config_from(LEAST, [f"run.resume={word}"]).run.resume == "auto"
    assert problems("train.mixed_precision=true") == [
        "train.mixed_precision: must be 'no', 'bf16', 'fp16' or 'auto', not True"
    ]


def test_the_schema_accepts_callbacks_by_path_alone():
    items = Config.model_json_schema()["properties"]["callbacks"]["items"]
    assert {"type": "string"} in items["anyOf"]
