"""The README's commands: each names files that exist and arguments that are accepted; the first ones are run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import ROOT, clean_environment, succeed

from accel_restore.config.load import config_from, parse_yaml
from accel_restore.data.degradations.pipeline import DEGRADATIONS, build_degradation
from accel_restore.train import parse_arguments

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip() for line in README.splitlines() if re.match(r" {4}(pip|accelerate|torchrun|python|accel-)", line)
]


def test_the_two_commands_stand_there_as_ci_runs_them():
    assert "pip install -e . && accelerate launch accel_restore/train.py" in COMMANDS
    found = subprocess.run(["grep", "-oP", r'^ {4}\Kpip install -e "\.\[test\]" && pytest$', ROOT / "README.md"],
                           capture_output=True, text=True)  # fmt: skip
    assert found.stdout == 'pip install -e ".[test]" && pytest\n'
    assert found.args[2] in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_files_and_arguments_of_every_command_exist(command):
    words = shlex.split(command.split("&&")[-1])
    for word in words:
        if re.match(r"(launch|accel_restore|configs)/", word):
            assert (ROOT / word).is_file(), word
    if "accel_restore/train.py" in words:
        options = parse_arguments(words[words.index("accel_restore/train.py") + 1 :])
        assert options.config in (None, "mine.yaml") and not options.overrides


def test_the_example_configurations_are_valid():
    whole, staged, degradation, tuned = (
        parse_yaml(text, "README") for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    )
    config = config_from(whole)
    assert config.run.name == "mine" and config.data.patch_size == 128
    data = {**whole["data"], **staged["data"]}
    assert [stage.patch_size for stage in config_from({**whole, "data": data}).data.stages] == [128, 192]
    assert config_from({**whole, **tuned}).model.checkpoint == "runs/mine/best.safetensors"
    steps = config_from({"data": {"train": {"gt": "x"}, **degradation}}).data.degradation
    assert len(steps) == 3 and build_degradation([(step.name, step.arguments) for step in steps]).on_host


def test_the_sources_of_the_table_are_valid_and_every_degradation_is_named():
    section = README.split("\n## Data\n")[1].split("\n## ")[0]
    sources = re.findall(r"`(\{(?:input|gt|dataset): [^`]*\})`", section)
    assert len(sources) >= 6
    for source in sources:
        config_from({"data": {"train": parse_yaml(source, "README")}})
    assert all(f"`{name}`" in section for name in DEGRADATIONS)


def test_every_recipe_is_listed_and_every_module_that_is_named_exists():
    for file in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{file.name}" in README
    for name in re.findall(r"\]\((accel_restore/[^)]*)\)", README):
        assert (ROOT / name).is_file()
    for row in re.findall(r"^\| `([\w./`, ]+)` \|", README.split("## Where things are")[1], re.MULTILINE):
        folder = Path("accel_restore")
        for name in re.findall(r"[\w/]+\.py|\w+/", row):
            folder = Path("accel_restore") / Path(name).parent if "/" in name else folder
            assert (ROOT / "accel_restore" / name).exists() or (ROOT / folder / name).exists(), name


def test_the_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures == [".github/demo.png"]
    with Image.open(ROOT / pictures[0]) as picture:
        assert picture.width <= 900 and (ROOT / pictures[0]).stat().st_size < 500_000


def test_the_demo_command_trains_in_a_checkout_that_is_not_installed(tmp_path):
    quick = ["data.crops_per_image=1", f"run.dir={tmp_path}", f"data.cache_dir={tmp_path}", "tracking.wandb=disabled"]
    process = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "accel_restore/train.py", *quick,
         "train.epochs=1", "model.width=8", "--cpu"],
        cwd=ROOT, capture_output=True, text=True, env=clean_environment(),
    )  # fmt: skip
    succeed(process)
    assert (tmp_path / "demo" / "best.safetensors").is_file()
