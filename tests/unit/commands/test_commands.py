"""Commands other than training: what they print and write, and what they refuse."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from damage import sound
from image_files import photo, save
from runs import make_photos
from torch import distributed

from accel_restore import __version__
from accel_restore.cli import COMMANDS, main
from accel_restore.commands._children import run_module
from accel_restore.commands.bench import data as bench_data
from accel_restore.data.cache import open_stores
from accel_restore.data.cache_folder import list_stores
from accel_restore.utils.imports import resolve


def test_every_command_exists_and_has_a_help(capsys):
    for name, (what, path) in COMMANDS.items():
        assert callable(resolve(path, {}, name))
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0 and f"accel-restore {name}" in capsys.readouterr().out and what


@pytest.fixture
def stores(tmp_path) -> Path:
    for name in "ab":
        open_stores([[save(tmp_path / f"{name}.png", photo(seed=ord(name)))]], 3, tmp_path / "cache")
    return tmp_path / "cache"


def test_the_cache_is_listed_and_deleted(stores, capsys):
    assert main(["cache", "--dir", str(stores)]) == 0
    out = capsys.readouterr().out
    names = [store.name for store in list_stores(stores)]
    assert all(name[:12] in out for name in names) and "2 stores" in out and "a.png" in out.replace("\n", "")
    assert main(["cache", "delete", names[0][:8], "--dir", str(stores)]) == 0
    assert [store.name for store in list_stores(stores)] == names[1:]
    assert main(["cache", "delete", "--all", "--dir", str(stores)]) == 0 and not list_stores(stores)
    assert main(["cache", "--dir", str(stores)]) == 0 and "0 stores" in capsys.readouterr().out


def test_stores_that_no_run_uses_are_deleted_by_age(stores):
    newest, oldest = list_stores(stores)
    os.utime(stores / f"{oldest.name}.arrow", (0, 0))
    assert main(["cache", "delete", "--unused-days", "30", "--dir", str(stores)]) == 0
    assert [store.name for store in list_stores(stores)] == [newest.name]


def test_a_folder_that_does_not_exist_and_a_broken_description(stores, capsys):
    for ignored in (["--all"], ["--unused-days", "3"], ["list", "abc"]):
        assert main(["cache", *ignored, "--dir", str(stores)]) == 2
        assert "use `accel-restore cache delete`" in capsys.readouterr().err
    assert main(["cache", "--dir", str(stores / "no")]) == 2 and "no such folder" in capsys.readouterr().err
    next(iter(stores.glob("*.json"))).write_text("{")
    assert main(["cache", "--dir", str(stores)]) == 0 and "2 stores" in capsys.readouterr().out


def test_deleting_needs_a_name_that_exists(stores, capsys):
    for given, words in (([], "give store names"), (["zzz"], "zzz: no such store")):
        assert main(["cache", "delete", *given, "--dir", str(stores)]) == 2
        assert words in capsys.readouterr().err
    assert len(list_stores(stores)) == 2


def test_only_stores_are_listed_and_deleted(stores, capsys):
    foreign = ["data-00000-of-00001.arrow", f"{'0' * 32}.arrow", "upload.tmp", f"{'1' * 32}.7.tmp", "x.json"]
    for name in foreign:
        (stores / name).write_bytes(b"ARROW1 of another program")
    for name in ("x.arrow", f"{'2' * 32}.arrow"):
        (stores / name).mkdir()
    remains = [f"{'3' * 32}.7.tmp", f".{'4' * 16}.7.tmp"]
    for name in remains:
        (stores / name).touch()
    described = next(path for path in stores.glob("*.json") if path.name != "x.json")
    described.unlink()  # the store's content shows what it is
    assert len(list_stores(stores)) == 4
    assert (
        main(["cache", "delete", "--all", "--dir", str(stores)]) == 0 and "deleted 4 stores" in capsys.readouterr().out
    )
    kept = {path.name for path in stores.iterdir() if path.suffix != ".lock"}
    assert kept == {*foreign, "x.arrow", f"{'2' * 32}.arrow"}


def test_one_store_that_cannot_be_deleted_does_not_keep_the_others(stores, capsys):
    (stuck := stores / f"{list_stores(stores)[0].name}.json").unlink()
    (stuck / "inside").mkdir(parents=True)
    assert main(["cache", "delete", "--all", "--dir", str(stores)]) == 2
    printed = capsys.readouterr()
    assert "deleted 1 stores" in printed.out and "1 of 2 stores remain" in printed.err and str(stuck) in printed.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--unused-days", "-1"], "must be 0 or more"),
        (["--unused-days", "nan"], "must be 0 or more"),
        (["--all", "--unused-days", "30"], "give either store names, --all or --unused-days"),
        (["abc", "--all"], "give either store names, --all or --unused-days"),
        (["abc", "--unused-days", "0"], "give either store names, --all or --unused-days"),
        ([""], "'': no such store"),
    ],
)
def test_an_unclear_choice_of_stores_deletes_none(stores, capsys, given, words):
    assert main(["cache", "delete", *given, "--dir", str(stores)]) == 2
    assert words in capsys.readouterr().err and len(list_stores(stores)) == 2


def test_names_of_stores_may_follow_the_options(stores):
    newest, oldest = list_stores(stores)
    assert main(["cache", "delete", "--dir", str(stores), newest.name]) == 0
    assert main(["cache", "--dir", str(stores), "delete", oldest.name]) == 0 and not list_stores(stores)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": "<b>", "first": 5, "bytes": null}',
        '{"images": [1], "first": {}, "channels": true, "bits": "[/red]"}',
        '{"first": "[/red]"}',
        "[1]",
        "[" * 100_000,
        "\xff",
    ],
    ids=range(6),
)
def test_a_foreign_description_of_a_store_is_shown_as_far_as_it_is_valid(stores, capsys, text):
    for file in stores.glob("*.json"):
        file.write_text(text, encoding="latin-1")
    assert main(["cache", "--dir", str(stores)]) == 0 and "2 stores" in capsys.readouterr().out


def write_config(tmp_path: Path, **data) -> str:
    file = tmp_path / "config.yaml"
    tree = {"patch_size": 32, "crops_per_image": 4, "cache_dir": str(tmp_path / "cache"), **data}
    file.write_text(yaml.safe_dump({"data": tree}))
    return str(file)


@pytest.mark.parametrize("kind", ["pairs", "clean"])
def test_bench_data_measures_every_stage(kind, tmp_path, capsys):
    train = sound(tmp_path, 4)[0].source if kind == "pairs" else {"gt": str(make_photos(tmp_path / "p", 4, least=35))}
    config = write_config(tmp_path, train=train)
    json_file = tmp_path / "bench.json"
    given = ["bench", "data", "--config", config, "--seconds", "0.02", "--json", str(json_file)]
    assert main([*given, "data.batch_size=auto"]) == 0
    assert "auto is resolved when training starts; this command uses 8" in capsys.readouterr().out
    assert main(given) == 0
    record, out = json.loads(json_file.read_text()), capsys.readouterr().out
    rates = record["pairs_per_second"]
    assert {bench_data.DECODING, bench_data.COPYING, bench_data.TRAINING, "store, in memory"} <= set(rates)
    assert all(rate > 0 for rate in rates.values()) and all(name in out for name in rates)
    assert record["gpus"] == pytest.approx(rates[bench_data.TRAINING] / 100) and record["fits_in_memory"] is True
    assert "GPUs that take 100 pairs/s each" in out


LAUNCHES = [
    {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"},
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": "two"},
    {"LOCAL_RANK": "x"},
    {"ACCELERATE_USE_CPU": "nonsense"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_SIZE": "2", "PMI_RANK": "1"},
]


@pytest.mark.parametrize("command", [["check"], ["bench", "data", "--seconds", "0.01"]], ids=["check", "bench data"])
def test_a_command_of_one_process_ignores_a_launch(command, tmp_path, monkeypatch):
    config = write_config(tmp_path, train=sound(tmp_path, 4)[0].source)
    for variables in LAUNCHES if command[0] == "bench" else LAUNCHES[::3]:  # they are seen before the command is
        AcceleratorState._reset_state(reset_partial_state=True)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert main([*command, "--config", config]) == 0, variables
            assert not distributed.is_initialized()


def test_a_child_does_not_take_part_in_a_launch_of_its_parent(monkeypatch):
    for variables in LAUNCHES[:4]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            seen = {}
            patch.setattr(subprocess, "run", lambda command, *, env, seen=seen, **_: seen.update(env))
            run_module("accel_restore.train", [], 1, {"TMPDIR": "here"})
            assert seen["TMPDIR"] == "here" and not set(variables) & set(seen)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_child_imports_no_module_of_the_working_folder(tmp_path, monkeypatch, processes):
    (tmp_path / "argparse.py").write_text("raise ImportError('a script of the user')")
    monkeypatch.chdir(tmp_path)
    done = run_module("accel_restore.cli", ["--version"], processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [__version__] * processes


def test_bench_refuses_what_cannot_be_measured(tmp_path, capsys):
    config = write_config(tmp_path, train={"gt": str(tmp_path / "none")})
    assert main(["bench", "data", "--config", config]) == 2
    assert "data.train.gt" in capsys.readouterr().err
    assert main(["bench", "data", "--config", config, "--seconds", "0"]) == 2
    assert main(["bench", "data", "--config", config, "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "no does not exist" in capsys.readouterr().err
