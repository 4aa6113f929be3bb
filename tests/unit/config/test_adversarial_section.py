"""The section `adversarial`: its short forms, its defaults, and what is refused."""

import jsonschema
import pytest
from configurations import LEAST, problems
from runs import ROOT

from accel_restore.config.load import config_from, load_config
from accel_restore.config.optim import Adam, AdamW
from accel_restore.config.schema import Config


def test_any_key_of_the_section_turns_it_on():
    assert config_from(LEAST).adversarial is None
    section = config_from(LEAST, ["adversarial.weight=0.01"]).adversarial
    assert section is not None and section.discriminator.name == "unet_sn" and section.loss == "vanilla"
    assert config_from({**LEAST, "adversarial": {"weight": 1.0}}, ["adversarial=off"]).adversarial is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("adversarial={}", Adam(lr=1e-4)),
        ("adversarial.optimizer.betas=[0.9, 0.99]", Adam(lr=1e-4, betas=(0.9, 0.99))),
        ("adversarial.optimizer.name=adam", Adam(lr=1e-4)),
        ("adversarial.optimizer={name: adam, lr: 0.01}", Adam(lr=0.01)),
        ("adversarial.optimizer.name=adamw", AdamW()),
    ],
)
def test_adam_has_a_smaller_rate_for_the_discriminator(override, expected):
    section = config_from(LEAST, [override]).adversarial
    assert section is not None and section.optimizer == expected
    assert config_from(LEAST, ["optimizer.name=adam"]).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    "section",
    [
        {}, {"discriminator": "patch"}, {"discriminator": {"name": "vgg", "norm": "spectral"}},
        {"optimizer": {"name": "sgd"}, "scheduler": {"name": "step", "step_size": 3}},
    ],
)  # fmt: skip
def test_the_schema_accepts_what_the_program_accepts(section):
    tree = {**LEAST, "adversarial": section}
    config = config_from(tree)
    jsonschema.validate(tree, Config.model_json_schema())
    assert config_from(config.model_dump(mode="json")) == config


def test_every_key_is_described_in_the_schema():
    properties = Config.model_json_schema()["$defs"]["Adversarial"]["properties"]
    assert len(properties) >= 11 and all(value.get("description") for value in properties.values())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["adversarial.loss=van"], "adversarial.loss: unknown choice 'van'"),
        (["adversarial.discriminator=unet"], "adversarial.discriminator.name: unknown choice 'unet'"),
        (["adversarial.skip_above=0.4"], "adversarial.skip_above: input should be greater than 0.5, not 0.4"),
        (["adversarial.scheduler.name=plateau"], "adversarial.scheduler.name: plateau follows the generator's"),
        (["adversarial.generator_every=2", "adversarial.discriminator_every=2"], "remove generator_every or it"),
        (["adversarial.scheduler.min_lr=1"], "adversarial.scheduler.min_lr: is above adversarial.optimizer.lr"),
        (["adversarial.optimizer.lrr=1"], "adversarial.optimizer.lrr: unknown key"),
    ],
)
def test_wrong_values_are_refused_with_their_keys(overrides, said):
    (line,) = problems(*overrides)
    assert said in line


def test_the_recipe_of_real_esrgan_has_the_degradation_of_the_blind_recipe():
    blind, adversarial = (load_config(ROOT / "configs" / f"{name}.yaml") for name in ("sr_x4_blind", "realesrgan_x4"))
    assert adversarial.data.degradation == blind.data.degradation
    assert adversarial.train.global_batch_size == 48 == 4 * adversarial.data.batch_size
    assert adversarial.train.max_steps == 400_000


def test_the_recipe_of_esrgan_halves_the_rates_of_both_networks_at_the_published_steps():
    config = load_config(ROOT / "configs" / "esrgan_x4.yaml")
    assert config.adversarial is not None and config.adversarial.scheduler == config.scheduler
    length = config.train.steps_per_epoch
    assert [epoch * length for epoch in config.scheduler.milestones] == [50_000, 100_000, 200_000, 300_000]


def test_the_small_recipe_continues_the_demos_model_and_validates_its_last_weights():
    demo, small = (load_config(ROOT / "configs" / f"{name}.yaml") for name in ("demo", "adversarial_small"))
    assert small.model.checkpoint == f"{demo.run.dir}/{demo.run.name}/best.safetensors"
    assert (small.model.name, small.model.arguments) == (demo.model.name, demo.model.arguments)
    assert (small.data.train, small.data.val) == (demo.data.train, demo.data.val)
    assert small.train.max_steps == small.validation.every_epochs * small.train.steps_per_epoch
