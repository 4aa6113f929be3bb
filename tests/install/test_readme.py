"""The documentation: its commands, YAML, Python and links are valid, and the names in it exist."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pydantic import BaseModel
from runs import ROOT, clean_environment, succeed

from accel_restore.cli import COMMANDS
from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.config.adversarial import Adversarial
from accel_restore.config.load import config_from, parse_yaml
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS
from accel_restore.config.schema import Config
from accel_restore.config.sets import Source, TrainSet, ValSet
from accel_restore.data.degradations.pipeline import build_degradation
from accel_restore.registry import DEGRADATIONS, DISCRIMINATORS, LOSSES, MODELS
from accel_restore.utils.imports import resolve

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in ("*.md", ".github/*.md", "configs/*.md", "launch/*.md", "tests/*.md", "accel_restore/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
README, CONFIGS, CODE = PAGES["README.md"], PAGES["configs/README.md"], PAGES["accel_restore/README.md"]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
_PROGRAMS = r"(?:pip|git|accelerate|torchrun|python|accel-restore|wandb|tensorboard|sbatch|kubectl|launch/\S+) "
COMMAND_LINES = sorted(
    {line for text in PAGES.values() for line in re.findall(rf"^ {{4}}({_PROGRAMS}.*)$", text, re.MULTILINE)}
    | {line for text in PAGES.values() for line in re.findall(rf"^\|.*?`({_PROGRAMS}[^`]*)`", text, re.MULTILINE)}
    | {path.read_text().splitlines()[0].removeprefix("# ") for path in RECIPES}
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The front page -------------------------------------------------------------------------------------------------------


def test_the_front_page_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


def test_the_first_command_is_the_demo_and_the_second_the_tests():
    first, second = re.findall(r"^ {4}(pip .*)$", README, re.MULTILINE)
    assert first == "pip install -e . && accel-restore train"
    assert second == 'pip install -e ".[test]" && pytest'
    assert r'^ {4}\Kpip install -e "\.\[test\]" && pytest$' in (ROOT / ".ci" / "run").read_text()


def test_the_picture_exists_and_is_small():
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    with Image.open(ROOT / picture) as image:
        assert image.width <= 900 and (ROOT / picture).stat().st_size < 500_000


@pytest.mark.parametrize(
    "command",
    [
        # An installed wheel is tried in the same way, by `test_entry.py`.
        pytest.param(["accel_restore.cli", "train"], marks=pytest.mark.sweep),
        ["accelerate.commands.accelerate_cli", "launch", "accel_restore/train.py"],
    ],
    ids=["accel-restore", "accelerate"],
)
def test_the_demo_trains_in_a_checkout(tmp_path, command):
    quick = ["data.crops_per_image=1", f"run.dir={tmp_path}", f"data.cache_dir={tmp_path}", "tracking.wandb=disabled"]
    process = subprocess.run(
        [sys.executable, "-m", *command, *quick, "train.epochs=1", "model.width=8", "--cpu"],
        cwd=ROOT, capture_output=True, text=True, env=clean_environment(),
    )  # fmt: skip
    succeed(process)
    assert (tmp_path / "demo" / "best.safetensors").is_file()
    if command[-1] == "train":  # the first command of the front page
        assert not re.search(r"\bwarning\b|defaults used instead", process.stdout + process.stderr, re.IGNORECASE)


# Commands -------------------------------------------------------------------------------------------------------------


class _Parsed(Exception):
    """Ends a command after its arguments have been parsed."""


def parse_only(monkeypatch, command: str, arguments: list[str]) -> argparse.Namespace:
    """Return the arguments of `accel-restore COMMAND` without running it. Exits if they are invalid."""

    def stop_after(parse):
        def parse_and_stop(*given, **named):
            raise _Parsed(parse(*given, **named))

        return parse_and_stop

    main = resolve(COMMANDS[command][1], {}, command)
    if command == "bench":  # its first word selects a command of its own
        kind, *arguments = arguments
        main = main.__globals__["KINDS"][kind]
    parsers = (argparse.ArgumentParser, "parse_args"), (argparse.ArgumentParser, "parse_intermixed_args")
    for kind, name in (*parsers, (ConfigurationParser, "parse_configuration")):
        monkeypatch.setattr(kind, name, stop_after(getattr(kind, name)))
    with pytest.raises(_Parsed) as stopped:
        main(arguments)
    return stopped.value.args[0]


def accel_restore_arguments(words: list[str]) -> list[str] | None:
    """Return the words of a command line from the accel-restore command on; None for another program."""
    for place, word in enumerate(words):
        if word in ("accel-restore", "accel_restore.cli"):
            return words[place + 1 :]
        if word in ("accel_restore/train.py", "accel_restore.train") or word.endswith((".sbatch", "torchrun.sh")):
            return ["train", *words[place + 1 :]]
    return None


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_files_and_arguments_of_every_command_exist(line, monkeypatch):
    words = shlex.split(line.split("&&")[-1])
    for word in words:
        if re.match(r"(launch|accel_restore|configs)/", word):
            assert (ROOT / word).is_file(), word
    arguments = accel_restore_arguments(words)
    if arguments is None:
        return
    options = parse_only(monkeypatch, arguments[0], arguments[1:])
    if arguments[0] == "train" and str(options.config).startswith("configs/"):
        assert (ROOT / options.config).is_file()
    for override in getattr(options, "overrides", None) or []:
        assert "=" in override


def test_commands_of_every_kind_were_found():
    first = [accel_restore_arguments(shlex.split(line.split("&&")[-1])) for line in COMMAND_LINES]
    named = {arguments[0] for arguments in first if arguments}
    assert named == set(COMMANDS) - {"cache"}  # a sentence names this one
    assert {"torchrun", "accelerate", "python", "sbatch"} <= {line.split()[0] for line in COMMAND_LINES}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_starts_with_its_command_and_the_expected_result(file):
    text = file.read_text()
    header = text.split("\nrun:")[0].splitlines()
    assert header[0].endswith(f" --config configs/{file.name}") and all(line.startswith("#") for line in header)
    for title in ("Task", "Data", "Hardware", "Result"):
        assert any(re.match(rf"# {title}: +\S", line) for line in header), title
    assert config_from(yaml.safe_load(text)).run.name == file.stem
    assert f"[{file.stem}]({file.name})" in CONFIGS


# YAML and Python ------------------------------------------------------------------------------------------------------


def test_every_yaml_block_is_a_valid_configuration():
    least = {"data": {"train": {"gt": "x"}}}
    for page, text in PAGES.items():
        for block in blocks(text, "yaml"):
            tree = parse_yaml(block, page)
            if not set(tree) <= set(Config.model_fields):  # a part of the section `data`
                tree = {"data": tree}
            config_from({**least, **tree, "data": {**least["data"], **tree.get("data", {})}})


def test_the_yaml_examples_have_the_values_their_pages_describe():
    (whole,) = blocks(README, "yaml")
    config = config_from(parse_yaml(whole, "README"))
    assert config.run.name == "mine" and config.data.patch_size == 128
    (staged,) = (block for block in blocks(CONFIGS, "yaml") if "stages:" in block)
    data = {**parse_yaml(whole, "README")["data"], **parse_yaml(staged, "configs")["data"]}
    assert [stage.patch_size for stage in config_from({"data": data}).data.stages] == [128, 192]
    (iterations,) = (block for block in blocks(CONFIGS, "yaml") if "steps_per_epoch:" in block)
    config = config_from({"data": {"train": {"gt": "x"}}, **parse_yaml(iterations, "configs")}, ["data.train.gt=x"])
    assert [epoch * config.train.steps_per_epoch for epoch in config.scheduler.milestones] == [250000, 275000]
    assert config.train.max_steps == 300000 == 60 * config.train.steps_per_epoch
    of_data = blocks(PAGES["accel_restore/data/README.md"], "yaml")
    (degradation,) = (block for block in of_data if block.startswith("degradation:"))
    steps = config_from({"data": {"train": {"gt": "x"}, **parse_yaml(degradation, "data")}}).data.degradation
    assert len(steps) == 3 and build_degradation([(step.name, step.arguments) for step in steps]).on_host


def test_every_python_block_compiles():
    found = [(page, block) for page, text in PAGES.items() for block in blocks(text, "python")]
    assert len(found) >= 2
    for page, block in found:
        compile(block, page, "exec")


def test_the_sources_of_the_table_are_valid():
    section = PAGES["accel_restore/data/README.md"].split("\n## Sources\n")[1].split("\n## ")[0]
    sources = re.findall(r"`(\{(?:input|gt|dataset): [^`]*\})`", section)
    assert len(sources) >= 6
    for source in sources:
        config_from({"data": {"train": parse_yaml(source, "data")}})


# Names ----------------------------------------------------------------------------------------------------------------


def keys_of(model: type[BaseModel], prefix: str) -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        keys += keys_of(field.annotation, f"{prefix}.{name}") if is_section else [f"{prefix}.{name}"]
    return keys


def test_every_configuration_key_is_documented():
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    keys = []
    for name in ("run", "data", "train", "validation", "checkpoint", "tracking", "model"):
        keys += keys_of(sections[name], name)
    for name, section in (("train", TrainSet), ("val", ValSet)):
        keys += [f"data.{name}.NAME.{key}" for key in section.model_fields.keys() - Source.model_fields.keys()]
    for section in OPTIMIZER_SECTIONS.values():
        keys += keys_of(section, "optimizer")
    for section in SCHEDULE_SECTIONS.values():
        keys += keys_of(section, "scheduler")
    keys += keys_of(Adversarial, "adversarial")
    missing = sorted({key for key in keys if f"`{key}`" not in CONFIGS})
    assert not missing


def test_every_registered_name_is_documented():
    for name in (*LOSSES, *MODELS, *OPTIMIZER_SECTIONS, *SCHEDULE_SECTIONS):
        assert f"`{name}`" in CONFIGS, name
    assert all(f"`{name}`" in PAGES["accel_restore/data/README.md"] for name in DEGRADATIONS)
    assert all(f"`{name}`" in PAGES["accel_restore/models/README.md"] for name in (*MODELS, *DISCRIMINATORS))


def test_every_room_is_in_the_table():
    rooms = {path.parent.name for path in (ROOT / "accel_restore").glob("*/__init__.py")}
    table = CODE.split("\n## Rooms\n")[1].split("\n## ")[0]
    assert rooms == set(re.findall(r"`(\w+)/`", table))


def test_named_modules_exist():
    for page, text in PAGES.items():
        folder = (ROOT / page).parent
        for name in re.findall(r"`([\w./-]+\.(?:py|sh|sbatch))`", text):
            places = (folder, ROOT / "accel_restore", ROOT, ROOT / "tests", ROOT / "configs")
            assert Path(name).stem == "NAME" or any((place / name).is_file() for place in places), (page, name)
        for name in re.findall(r"`(tests/[\w/.]+)`", text):
            assert (ROOT / name).exists(), (page, name)
        modules = text.split("\n## Modules\n")[1].split("\n## ")[0] if "\n## Modules\n" in text else ""
        for row in re.findall(r"^\| (`.+?) \|", modules, re.MULTILINE):
            for name in re.findall(r"`(\w+/?)`", row):
                assert (folder / name).is_dir() or (folder / f"{name}.py").is_file(), (page, name)


def test_the_places_to_extend_are_where_the_table_says():
    places = re.findall(r"`(\w+)` in `([\w/]+\.py)`", CODE.split("\n## Extending\n")[1])
    assert len(places) >= 8
    for name, module in places:
        text = (ROOT / "accel_restore" / module).read_text()
        assert re.search(rf"^(def {name}\(|{name}(: .+)? = )", text, re.MULTILINE), (name, module)


def test_the_pre_commit_hooks_are_the_checks_of_continuous_integration():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    script = (ROOT / ".ci" / "run").read_text()
    assert programs == {"ruff", "mypy", "lint-imports", "deptry"}
    assert all(re.search(rf"^{program}\b", script, re.MULTILINE) for program in programs)


# Links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_has_a_target(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if fragment:
            assert fragment in anchors(file.read_text()), target
