"""The command lines of commands that take a configuration."""

import ast
from pathlib import Path

import pytest

from accel_restore import cli, train
from accel_restore.commands import check
from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.errors import UserError


def parse(*words: str):
    parser = ConfigurationParser(prog="accel-restore try", description=None)
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_configuration(list(words))


def problem(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value).splitlines()[-1].removeprefix("  - ")


@pytest.mark.parametrize("file", ["mine.yaml", "mine.yml", "Mine.YAML", "configs/sr.x2.yml", "./a b.yaml"])
def test_a_yaml_file_alone_is_the_configuration(file):
    for words in ([file], ["a=1", file, "--overwrite"], ["--overwrite", file, "a=1"], ["--config", file, "a=1"]):
        options = parse(*words)
        assert (options.config, options.overrides) == (file, ["a=1"] * ("a=1" in words))
    assert parse("data.train.dataset=mine.yaml").config is None


def test_a_configuration_in_a_folder_with_an_equals_sign_is_found(tmp_path):
    file = tmp_path / "lr=1.yaml"
    file.touch()
    assert parse(str(file)).config == str(file)


def test_two_configurations_are_rejected():
    for words in (("a.yaml", "b.yml"), ("--config", "a.yaml", "b.yml")):
        assert problem(*words) == "a.yaml, b.yml: give one configuration, and change its keys with key=value"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--epochs 5", "--epochs: write train.epochs=5"), ("--epochs=5", "--epochs: write train.epochs=5"),
        ("--epochs", "--epochs: write train.epochs=..."), ("--epochs a=1", "--epochs: write train.epochs=..."),
        ("mine.yaml --lr 1e-4 a=1", "--lr: write optimizer.lr=1e-4"), ("--lr -1", "--lr: write optimizer.lr=..."),
        ("--batch-size 4", "--batch-size: write data.batch_size=4"), ("--name x", "--name: write run.name=x"),
        ("--batch_size 4", "--batch_size: write data.batch_size=4"), ("--seed 3", "--seed: write run.seed=3"),
        ("--resume auto", "--resume: write run.resume=auto"), ("-lr 3", "-lr: write optimizer.lr=3"),
        ("--num-workers 8", "--num-workers: write data.num_threads=8"),
        ("--fp16 mine.yaml", "--fp16: write train.mixed_precision=fp16"),
        ("--bf16 x", "--bf16: write train.mixed_precision=bf16"), ("--patch 7", "--patch: write data.patch_size=7"),
        ("--model=dncnn", "--model: write model.name=dncnn"),
        ("--optimizer sgd", "--optimizer: write optimizer.name=sgd"),
        ("--scheduler=step", "--scheduler: write scheduler.name=step"), ("--loss l1", "--loss: write 'loss={l1: 1}'"),
        ("--checkpoint a.pth", "--checkpoint: write model.checkpoint=a.pth"),
        ("--data a", "--data: write data.train.gt=a"),
        ("--validation 3", "--validation: see accel-restore try --help"),
        ("--over", "--over: did you mean --overwrite?"),
        ("--gpu 1", "--gpu: choose GPUs by CUDA_VISIBLE_DEVICES=1 before the command"),
        ("--device cuda", "--device: choose GPUs by CUDA_VISIBLE_DEVICES=0 before the command"),
        ("-c a.yaml", "-c: write --config a.yaml"), ("--config-file=a", "--config-file: write --config a"),
        ("--no-wandb", "--no-wandb: write tracking.wandb=disabled"), ("--lr a.yaml", "--lr: write optimizer.lr=..."),
        ("--deterministic a.yaml", "--deterministic: write train.deterministic=true"),
        ("--no-compile", "--no-compile: write train.compile=false"),
        ("--no-lr", "--no-lr: see accel-restore try --help"),
        ("--train.epochs 5", "--train.epochs: write train.epochs=5"),
        ("--gpus 4", "--gpus: the launcher starts the processes: torchrun --nproc_per_node 4 ..."),
        ("--nproc-per-node 4", "--nproc-per-node: the launcher starts the processes: torchrun --nproc_per_node 4 ..."),
        ("--overwite", "--overwite: did you mean --overwrite?"), ("--foo", "--foo: see accel-restore try --help"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_answered_with_the_key_that_it_stands_for(words, answer):
    assert problem(*words.split()) == answer


def test_all_unknown_options_are_reported_at_once(capsys):
    assert train.main(["--epochs", "5", "--lr", "3"]) == 2
    said = capsys.readouterr().err
    assert "train.epochs=5" in said and "optimizer.lr=3" in said and "usage" not in said


def test_the_report_of_check_never_replaces_the_configuration():
    options = check._parse(["--json", "mine.yaml"])
    assert (options.config, options.json) == ("mine.yaml", "-")


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("word", "answer"),
    [("trian", "did you mean train?"), ("mine.yaml", "write accel-restore train mine.yaml"),
     ("a=1", "write accel-restore train a=1"), ("resume", "the same accel-restore train command"),
     ("predict", "write accel-restore restore"), ("--epochs", "--epochs: write train.epochs=..."),
     ("--cpu", "write accel-restore train --cpu"),
         ("frobnicate", "write one of: train, config, convert, models, check")],
)  # fmt: skip
def test_an_unknown_command_is_rejected_with_a_remedy(word, answer, capsys):
    assert cli.main([word]) == 2
    assert answer in capsys.readouterr().err


def test_a_folder_or_a_file_of_a_run_in_place_of_a_configuration_is_answered_with_what_it_is(tmp_path):
    (tmp_path / "best.safetensors").touch()
    assert "is a folder; to train on its images, write data.train.gt=" in problem(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    assert f"continues it (run.name={tmp_path.name})" in problem(str(tmp_path))
    assert "write model.checkpoint=" in problem(str(tmp_path / "best.safetensors"))


def test_no_parser_takes_the_start_of_an_option_for_the_option():
    for file in Path(cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("ArgumentParser", "super().__init__")):
                if ast.unparse(node.func) == "super().__init__" and file.name != "_arguments.py":
                    continue
                assert "allow_abbrev=False" in ast.unparse(node), file


@pytest.mark.parametrize("step", ["0", "-1", "1.5", "x"])
def test_a_step_to_stop_after_is_above_0(step, capsys):
    assert train.main(["--stop-after", step]) == 2
    assert f"--stop-after: must be a step above 0, not {step}" in capsys.readouterr().err
