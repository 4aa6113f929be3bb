"""The example package in accel_restore/README.md, with an own part of each kind, used from YAML and from Python."""

import os
import sys

import pytest
import yaml
from runs import ROOT, epochs_of, json_lines, last_weights, launch, run_folder, small_config, succeed

from accel_restore import fit, load

PHOTOS = 12, 3  # training, validation
PAGE = (ROOT / "accel_restore" / "README.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Extending\n")[1].split("\n## ")[0]
CODE, YAML = (SECTION.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "yaml"))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Write the package of the page and make it importable, in this process and in those it starts."""
    root = tmp_path_factory.mktemp("package")
    (root / "mypackage").mkdir()
    (root / "mypackage" / "parts.py").write_text(CODE)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


def config_of(photos, out, batch_size: int) -> dict:
    """Return the page's configuration as a run of seconds."""
    named = yaml.safe_load(YAML)
    named["validation"]["metrics"].append("torchmetrics.image:SpatialCorrelationCoefficient")  # must not wait for ranks
    sections = {"train": {"epochs": 2}, "data": {"batch_size": batch_size, "degradation": named["data"]["degradation"]}}
    return {**small_config(*photos, out, **sections), **{key: named[key] for key in named if key != "data"}}


def test_the_example_is_short_and_has_all_kinds():
    assert len(CODE.splitlines()) <= 40
    named = yaml.safe_load(YAML)
    assert set(named) == {"model", "loss", "optimizer", "scheduler", "validation", "callbacks", "data"}
    assert YAML.count("mypackage.parts:") == 8  # the metric is also monitored


def test_a_configuration_with_own_parts_of_every_kind_trains_on_one_and_two_ranks(package, photos, tmp_path):
    runs, env = {}, {"PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    for ranks in (1, 2):
        runs[ranks] = config_of(photos, tmp_path / f"ranks{ranks}", 8 // ranks)
        succeed(launch(runs[ranks], "--audit", ranks=ranks, env=env))
    one, two = (epochs_of(config) for config in runs.values())
    for first, second in zip(one, two, strict=True):
        assert first["lr"] == second["lr"] and first["optimizer_steps"] == second["optimizer_steps"]
        names = [key for key in first if key.startswith(("val_", "train_")) and first[key] is not None]
        assert {key: second[key] for key in names} == pytest.approx({key: first[key] for key in names}, rel=1e-4)
        assert isinstance(first["val_mypackage.parts:worst"], float)
    assert [line["lr"] for line in one] == [0.02, 0.01]
    weights = [last_weights(config) for config in runs.values()]
    assert weights[0].keys() == weights[1].keys() == {"weight", "bias"}
    assert len({line["rank"] for line in json_lines(run_folder(runs[2]) / "metrics.jsonl") if "rank" in line}) == 2


def test_parts_can_be_objects_in_python(package, photos, tmp_path):
    from mypackage.parts import Alarm, Net, huber

    config = config_of(photos, tmp_path, 8)
    for key in ("model", "loss", "callbacks"):
        del config[key]
    steps = []

    class Recording(Alarm):
        def on_step(self, state):
            steps.append(state.step)

    model = Net(3)
    before = model.weight.detach().clone()
    folder = fit(config, cpu=True, model=model, loss=huber, callbacks=[Recording()])
    trained = load(folder / "best.safetensors", model=Net(3)).model.weight
    assert steps == [1, 2, 3, 4] and not trained.equal(before)
    assert [line["lr"] for line in epochs_of(config)] == [0.02, 0.01]
