"""The configuration of a commit of an older version, compared with that of this version."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, create_model

from accel_restore.checkpoint.comparison import Comparison
from accel_restore.config import keys, stored
from accel_restore.config.data import Data, Stage
from accel_restore.config.load import config_from, load_config
from accel_restore.config.model import Model
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, AdamW
from accel_restore.config.schema import Config, Train
from accel_restore.config.sets import Degradation, Source
from accel_restore.errors import UserError

OLD = Path(__file__).parents[2] / "fixtures" / "run_before_rooms"
COMMIT = OLD / "runs/old/checkpoints/step-00000006"
COUNTERS = json.loads((COMMIT / "state.json").read_text())


def extended(section, **fields):
    """Return the section with more keys."""
    return create_model(section.__name__, __base__=section, **fields)


@pytest.fixture
def later(monkeypatch):
    """Return a function that replaces this version's configuration by a later one."""

    def replace(**sections: tuple[Any, Any]) -> type[Config]:
        config = extended(Config, **sections)
        for module in (stored, keys):
            monkeypatch.setattr(module, "Config", config)
        return config

    return replace


def differences(config: Config, counters: dict = COUNTERS, precision: str = "no") -> list[str]:
    try:
        Comparison(config, counters, [], precision).check_own(Path("runs/old"), "")
    except UserError as error:
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []


def old_tree() -> dict:
    """Return what the file of the old run says, as a mapping without this version's defaults."""
    tree = json.loads(json.dumps(COUNTERS["config"]))
    del tree["train"]["gradient_accumulation_steps"]  # set again below, as validation needs to know who set it
    tree["train"]["gradient_accumulation_steps"] = 2
    return tree


def test_the_old_commit_has_the_configuration_of_its_file():
    assert differences(load_config(OLD / "old.yaml")) == []


def test_the_precision_in_use_is_compared_not_what_chose_it():
    tree = old_tree()
    for wanted, precision in (("auto", "no"), ("no", "no"), ("auto", "bf16"), ("bf16", "bf16")):
        tree["train"]["mixed_precision"] = wanted
        said = differences(Config.model_validate(tree), precision=precision)
        text = "mixed precision in use: no in the commit, bf16 now; give train.mixed_precision=no"
        assert said == ([] if precision == "no" else [text])


EXTENDED = {
    "in a section": {"train": (extended(Train, new=(int, 3)), extended(Train, new=(int, 3))())},
    "with a list": {"train": (extended(Train, new=(list[str], ["a"])), extended(Train, new=(list[str], ["a"]))())},
    "in a section within a section": {
        "data": (extended(Data, train=(extended(Source, new=(float, 0.5)), Field())), Field())
    },
    "in a section of a list": {
        "data": (extended(Data, degradation=(list[extended(Degradation, new=(bool, True))], Field())), Field())
    },
    "in a chosen section": {"optimizer": (extended(AdamW, new=(str, "x")), extended(AdamW, new=(str, "x"))())},
    "next to a model's arguments": {"model": (extended(Model, new=(bool, False)), Field())},
    "a whole section": {"adversarial": (extended(Stage, new=(int, 1)) | None, None)},
    "a section that is on": {"extra": (Train, Train())},
    "that follows from others": {
        "data": (
            extended(Data, new=(int, Field(default_factory=lambda data: 10 * data["scale"]))), Field(),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("sections", EXTENDED.values(), ids=EXTENDED)
def test_a_new_key_with_a_default_leaves_an_old_run_its_configuration(sections, later):
    config = later(**sections)
    assert differences(config.model_validate(old_tree())) == []


def test_a_new_key_with_another_value_is_refused_with_the_value_that_the_old_run_had(later):
    section = extended(Train, new=(int, 3))
    tree = old_tree()
    tree["train"]["new"] = 5
    assert differences(later(train=(section, section())).model_validate(tree)) == ["train.new: 3 in the commit, 5 now"]


def test_a_key_that_this_version_lacks_is_refused_unless_it_was_off(tmp_path):
    tree = old_tree()
    tree["train"] |= {"gone": 0.5, "off": None}
    tree["optimizer"]["gone"] = 1
    lines = sorted(differences(load_config(OLD / "old.yaml"), {**COUNTERS, "config": tree}))
    assert lines == [
        f"{key} in the commit; this version does not have the key" for key in ("optimizer.gone: 1", "train.gone: 0.5")
    ]
    comparison = Comparison(load_config(OLD / "old.yaml"), {**COUNTERS, "config": tree}, [], "no")
    for text, named in (('{"versions": {"accel_restore": "9.1"}}', " (9.1)"), ("[]", ""), ('{"versions": 3}', "")):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UserError) as caught:
            comparison.check_own(tmp_path, "")
        title = str(caught.value).splitlines()[0]
        assert title.endswith(f"continue with the version that wrote it{named}, or choose another run.name")
        assert "restore these keys" not in title


@pytest.mark.parametrize(
    "damaged",
    [{}, {"train": 5}, {"data": {"scale": "x"}}, {"optimizer": {"name": ["adamw"]}}, {"data": {"degradation": "x"}}],
)
def test_a_stored_configuration_without_its_form_is_refused(damaged):
    assert differences(load_config(OLD / "old.yaml"), {**COUNTERS, "config": damaged})


@pytest.mark.parametrize("scheduler", SCHEDULE_SECTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZER_SECTIONS)
def test_a_commit_that_lacks_any_key_with_a_default_continues(optimizer, scheduler):
    tree = {"data": {"train": {"gt": "a"}}, "optimizer": {"name": optimizer}, "scheduler": {"name": scheduler}}
    config = config_from(tree)
    full = config.model_dump(mode="json")
    for section, key in [
        (section, key) for section, content in full.items() for key in content or () if section != "loss"
    ]:
        if key in ("name", "train"):
            continue
        counters = {**COUNTERS, "config": json.loads(json.dumps(full)), "global_batches": [8]}
        del counters["config"][section][key]
        assert differences(config, counters) == [], (section, key)


@pytest.mark.parametrize("has_best", [True, False])
def test_resuming_another_run_with_another_rate_names_the_way_to_take_its_weights_alone(has_best, tmp_path):
    commit = tmp_path / "other" / "step-00000006"
    shutil.copytree(COMMIT, commit)
    manifest = json.loads((commit / "COMMIT.json").read_text())
    if not has_best:
        del manifest["files"]["best.safetensors"]
        (commit / "COMMIT.json").write_text(json.dumps(manifest))
    config = load_config(OLD / "old.yaml", ["optimizer.lr=1e-4", "run.name=new"])
    with pytest.raises(UserError) as caught:
        Comparison(config, COUNTERS, [], "no").check_other(commit)
    title, *lines = str(caught.value).splitlines()
    weights = commit / ("best.safetensors" if has_best else "ema.safetensors")
    advice = f"model.checkpoint={weights} model.name=unet"
    assert title.startswith("run.resume: ") and f"at step 0 from its weights alone, give {advice} in place" in title
    load_config(OLD / "old.yaml", advice.split())
    assert lines == ["  - optimizer.lr: 0.001 in the commit, 0.0001 now"]


def test_a_section_adversarial_that_only_one_side_has_is_one_difference(tmp_path):
    commit = tmp_path / "other" / "step-00000006"
    shutil.copytree(COMMIT, commit)
    manifest = json.loads((commit / "COMMIT.json").read_text())
    manifest["files"]["discriminator.safetensors"] = manifest["files"]["best.safetensors"]
    (commit / "COMMIT.json").write_text(json.dumps(manifest))
    plain = load_config(OLD / "old.yaml", ["run.name=new"])
    with_section = load_config(OLD / "old.yaml", ["run.name=new", "adversarial={loss: hinge, r1: 2}"])
    counters = {**COUNTERS, "config": with_section.model_dump(mode="json")}
    assert differences(with_section) == ["adversarial: the section is not set in the commit, and set now"]
    assert differences(plain, counters) == ["adversarial: the section is set in the commit, and not set now"]
    assert differences(with_section, counters) == []

    other = load_config(OLD / "old.yaml", ["run.name=new", "adversarial={loss: vanilla}"])
    with pytest.raises(UserError) as caught:
        Comparison(other, counters, [], "no").check_other(commit)
    title, *lines = str(caught.value).splitlines()
    assert f" adversarial.discriminator.checkpoint={commit / 'discriminator.safetensors'} in place" in title
    assert lines == [
        "  - adversarial.loss: hinge in the commit, vanilla now",
        "  - adversarial.r1: 2.0 in the commit, 0.0 now",
    ]


def test_weights_that_do_not_fit_the_new_model_are_not_suggested(tmp_path):
    config = load_config(OLD / "old.yaml", ["optimizer.lr=1e-4", "model.width=8", "run.name=new"])
    with pytest.raises(UserError) as caught:
        Comparison(config, COUNTERS, [], "no").check_other(COMMIT)
    assert "model.checkpoint" not in str(caught.value) and "model.width: 4 in the commit, 8 now" in str(caught.value)
