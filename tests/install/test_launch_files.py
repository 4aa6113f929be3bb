"""The files of launch/: the program that each file is for accepts it, and starts with it where this machine can."""

import json
import os
import re
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from reference import configuration as reference_configuration
from runs import DRIVER, ROOT, TRAIN, clean_environment, free_port, last_weights, run_folder
from stub_wandb import stub_server
from torch.distributed.run import get_args_parser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from watched import commits, kill_all, same, status

from accel_restore.config.load import load_config
from accel_restore.train import parse_arguments

LAUNCH = ROOT / "launch"
SWEEP = LAUNCH / "sweep.yaml"
SKYPILOT = LAUNCH / "skypilot.yaml"
DOCKERFILE = LAUNCH / "Dockerfile"
ACCELERATE = sorted({*LAUNCH.glob("*.yaml")} - {SWEEP, SKYPILOT})
SCRIPT = LAUNCH / "torchrun.sh"
TRAIN_JOB = LAUNCH / "kubernetes" / "trainjob.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
SECONDS = 300  # a limit for a test that hangs


def configuration(reference, out, **sections):
    """Return the configuration of the reference run on two ranks, with more commits."""
    return reference_configuration(reference.photos, out, 2, checkpoint={"every_steps": 2}, **sections)


def file_of(config):
    """Return the configuration's file, by which `watched` finds the processes of a training."""
    file = run_folder(config).parent / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_the_table_names_every_file():
    table = (LAUNCH / "README.md").read_text()
    files = {path.relative_to(LAUNCH).as_posix() for path in LAUNCH.rglob("*") if path.is_file()} - {"README.md"}
    assert set(re.findall(r"^\| [^|]+ \| \[([^\]]+)\]\(\1\) \|", table, re.MULTILINE)) == files


def test_the_commands_of_the_table_are_valid():
    table = (LAUNCH / "README.md").read_text().split("\n## ")[1]
    commands = re.findall(r"`accelerate launch ([^`]+)`", table)
    assert len(commands) == len(ACCELERATE)
    for command in commands:
        parsed = launch_command_parser().parse_args(command.split())
        assert (ROOT / parsed.config_file).is_file() and (ROOT / parsed.training_script).is_file()
        assert parse_arguments(parsed.training_script_args).config in (None, "mine.yaml")


# Accelerate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.stem)
def test_accelerate_loads_the_file_and_knows_its_keys(file):
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes == (1 if file.stem == "single_gpu" else 2)
    assert loaded.num_machines == (2 if file.stem == "multi_node" else 1)
    assert loaded.use_cpu is False and loaded.mixed_precision == "no"
    # Accelerate accepts any key in a section. Only keys that are options of `accelerate launch` have an effect.
    assert set(loaded.fsdp_config) <= names_of(launch_command_parser())
    assert (loaded.fsdp_config.get("fsdp_version") == 2) == (file.stem == "fsdp2")


def names_of(parser: ArgumentParser):
    return {action.dest for action in parser._actions}


def test_control_accelerate_refuses_a_misspelt_key(tmp_path):
    (tmp_path / "wrong.yaml").write_text((LAUNCH / "multi_node.yaml").read_text() + "num_machine: 2\n")
    with pytest.raises(ValueError, match="num_machine"):
        load_config_from_file(str(tmp_path / "wrong.yaml"))
    assert "fsdp_versoin" not in names_of(launch_command_parser())


@pytest.mark.sweep  # test_two_hosts.py starts torchrun on two hosts
def test_multi_node_with_two_launchers_gives_the_reference_weights(reference, tmp_path):
    config, port = configuration(reference, tmp_path), str(free_port())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / "multi_node.yaml"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    training = [TRAIN, "--cpu", "--config", file_of(config)]
    launchers = []
    try:
        for machine in ("0", "1"):
            with (tmp_path / f"{machine}.log").open("w") as log:
                ranked = [*command, "--machine_rank", machine, *training]
                launchers.append(subprocess.Popen(ranked, stdout=log, stderr=log, env=clean_environment()))
        codes = [launcher.wait(SECONDS) for launcher in launchers]
    finally:
        kill_all(config)
    logs = [(tmp_path / f"{machine}.log").read_text() for machine in ("0", "1")]
    assert codes == [0, 0], "\n".join(logs)
    assert "2 × cpu " in logs[0] and "4 = 1 per device × 2 accumulated × 2 ranks" in logs[0]
    assert "finished: best epoch" in logs[0] and "finished: best epoch" not in logs[1]
    assert status(config)["state"] == "finished" and status(config)["world_size"] == 2
    assert same(last_weights(config), reference.weights(2))


@pytest.mark.sweep  # test_fsdp.py trains without a launcher
def test_fsdp2_trains_to_the_reference_weights(reference, tmp_path):
    config = configuration(reference, tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / "fsdp2.yaml"]
    process = subprocess.run(
        [*command, DRIVER, "--cpu", "--config", file_of(config)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**clean_environment(), "RUN_TEST_MODE": "as_gpus"},
    )
    assert process.returncode == 0, process.stderr
    assert "2 × cpu, FSDP2 " in process.stdout
    assert "4 = 1 per device × 2 accumulated × 2 ranks" in process.stdout
    weights, expected = last_weights(config), reference.weights(2)
    assert list(weights) == list(expected)
    assert all(torch.allclose(weights[key], expected[key], atol=1e-5) for key in expected)


# torchrun ------------------------------------------------------------------------------------------------------------

# In the sixth step of the first attempt, the loss of rank 1 kills its process, as running out of memory would.
DYING = """
import os, signal
from accel_restore.losses.pixel import l1 as exact
calls = []
def l1(output, gt):
    calls.append(None)
    if len(calls) == 6 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return exact(output, gt)
"""


def test_torchrun_accepts_the_arguments_of_the_script():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert SCRIPT.stat().st_mode & 0o111
    (command,) = re.findall(r"exec torchrun (.*)", SCRIPT.read_text(), re.DOTALL)
    expanded = ["bash", "-c", f"printf '%s\\n' {command}", "torchrun", "--cpu", "--config", "mine.yaml"]
    words = subprocess.run(expanded, check=True, capture_output=True, text=True, env={}).stdout.splitlines()
    parsed = get_args_parser().parse_args(words)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts, parsed.monitor_interval) == ("1", "auto", 3, 1.0)
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint) == ("c10d", "localhost:0")
    assert parsed.module and parsed.training_script == "accel_restore.train"
    assert parse_arguments(parsed.training_script_args).config == "mine.yaml"


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_the_script_leaves_time_to_commit_and_shares_no_store_between_nodes(tmp_path, nodes):
    (tmp_path / "torchrun").write_text('#!/bin/bash\nenv\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NNODES": nodes}
    said = subprocess.run([SCRIPT], check=True, capture_output=True, text=True, env=env).stdout.splitlines()
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=170" in said
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in said) == (nodes == "2")
    assert said[said.index("--signals-to-handle") + 1] == "SIGTERM,SIGINT,SIGUSR1"


@pytest.mark.sweep
@pytest.mark.parametrize("restarts", ["1", "0"], ids=["", "control"])
def test_torchrun_starts_again_when_a_rank_is_lost(reference, tmp_path, restarts):
    (tmp_path / "dying.py").write_text(DYING)
    config = configuration(reference, tmp_path, loss={"dying:l1": 1.0})
    env = {"NPROC_PER_NODE": "2", "MAX_RESTARTS": restarts, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.run(
        [SCRIPT, "--cpu", "--config", file_of(config)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**clean_environment(), **env},
    )
    if restarts == "0":
        assert process.returncode != 0 and commits(config) == [2, 4], process.stderr
        return
    assert process.returncode == 0, process.stderr
    assert re.search(r"continu.*step 4\b", process.stdout), process.stdout
    assert status(config)["state"] == "finished"
    assert same(last_weights(config), reference.weights(2))


# Kubernetes ----------------------------------------------------------------------------------------------------------


def understood(document):
    """Return the parts of a TrainJob that the types of Kubeflow Trainer's API know; they drop all other keys."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    return models.TrainerV1alpha1TrainJob.from_dict(document).to_dict()


def test_kubeflow_knows_every_key_of_the_train_job():
    document = yaml.safe_load(TRAIN_JOB.read_text())
    assert (document["apiVersion"], document["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert document["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert understood(document) == document


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("numProcPerNode", "numProcsPerNode"),
        ("volumeMounts", "volumeMount"),
        ("runtimePatches", "podTemplateOverrides"),
    ],
)
def test_control_kubeflow_drops_a_misspelt_key(right, wrong):
    text = TRAIN_JOB.read_text()
    assert text.count(f"{right}:") == 1
    document = yaml.safe_load(text.replace(f"{right}:", f"{wrong}:"))
    assert understood(document) != document


def test_torchrun_accepts_the_environment_of_the_train_job(monkeypatch):
    trainer = yaml.safe_load(TRAIN_JOB.read_text())["spec"]["trainer"]
    assert trainer["command"] == ["torchrun"]
    for name, value in {"NNODES": trainer["numNodes"], "NPROC_PER_NODE": trainer["numProcPerNode"]}.items():
        monkeypatch.setenv(f"PET_{name}", str(value))  # as Kubeflow Trainer does
    parsed = get_args_parser().parse_args(trainer["args"])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.training_script) == ("2", "8", "accel_restore.train")
    options = parse_arguments(parsed.training_script_args)
    assert options.config == "/shared/mine.yaml" and "run.dir=/shared/runs" in options.overrides
    patch = TRAIN_JOB.read_text()
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", patch)[1])
    assert 30 < int(trainer["env"][0]["value"]) < grace


# SkyPilot, Docker ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_skypilot_task_starts_torchrun_on_each_node(nodes, tmp_path):
    task = yaml.safe_load(SKYPILOT.read_text())
    run = task["run"].replace("source ~/accel-restore/bin/activate\n", "")
    assert run != task["run"] and "~/accel-restore ." in task["setup"]
    stub = tmp_path / "torchrun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{node}" for node in range(nodes)),
        **task["envs"],
    }
    command = ["bash", "-euo", "pipefail", "-c", run]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    parsed = get_args_parser().parse_args(done.stdout.splitlines())
    assert (parsed.nnodes, parsed.nproc_per_node) == (str(nodes), "8")
    assert (parsed.rdzv_endpoint, parsed.training_script) == ("10.0.0.0:29400", "accel_restore.train")
    options = parse_arguments(parsed.training_script_args)
    (volume,) = task["volumes"]
    written = [value.partition("=")[2] for value in options.overrides]
    assert all(place.startswith(f"{volume}/") for place in (options.config, *written)) and len(written) == 2


def test_the_image_holds_what_the_wheel_is_built_from():
    text = DOCKERFILE.read_text()
    copied = {name for line in re.findall("^COPY (.+) .+$", text, re.MULTILINE) for name in line.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed | {*wheel["packages"], *wheel["force-include"]}
    (extras,) = re.findall(r"pip install .*'\.\[(.+)\]'", text)
    assert {*extras.split(",")} <= project["project"]["optional-dependencies"].keys()
    assert json.loads(re.search("^ENTRYPOINT (.+)$", text, re.MULTILINE)[1]) == [*project["project"]["scripts"]]
    assert re.search("^USER [1-9]", text, re.MULTILINE)  # not root


# W&B -----------------------------------------------------------------------------------------------------------------


def command_of_agent(values):
    """Return the command line of a trial, put together as `wandb agent` does."""
    sweep = yaml.safe_load(SWEEP.read_text())
    words = {**create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})}
    command = create_sweep_command(sweep["command"])
    return [part for word in command for part in (words[word[2:-1]] if word.startswith("${") else [word])]


def test_the_keys_and_the_metric_of_the_sweep_exist():
    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file() and sweep["metric"] == {"name": "val/psnr", "goal": "maximize"}
    values = {key: given.get("values", [given.get("min")])[0] for key, given in sweep["parameters"].items()}
    load_config(ROOT / "configs" / "demo.yaml", [f"{key}={value}" for key, value in values.items()])
    metrics = load_config(ROOT / "configs" / "demo.yaml").validation.metrics
    assert "psnr" in [metric.name for metric in metrics]
    assert command_of_agent({"model.blocks": [1, 2], "train.compile": False})[-2:] == [
        "model.blocks=[1, 2]", "train.compile=False",
    ]  # fmt: skip


@pytest.mark.sweep
def test_each_trial_of_a_sweep_has_its_own_folder_and_is_the_run_of_the_sweep(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    quick = {"data.crops_per_image": 1, "data.max_images": 2, "train.epochs": 1, "model.width": 8}
    quick |= {
        "optimizer.lr": 0.002,
        "scheduler.warmup_epochs": 0,
        "data.cache_dir": str(tmp_path / "cache"),
        "validation.num_samples": 0,
    }
    with stub_server(tmp_path / "stub") as stub:
        env = {**clean_environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        env |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "online"}
        env |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "somebody"}
        for trial in ("trial1", "trial2"):
            parameters = tmp_path / f"{trial}.yaml"
            parameters.write_text(yaml.safe_dump({"wandb_version": 1, "optimizer.lr": {"value": 0.002}}))
            given = {**env, "WANDB_RUN_ID": trial, "WANDB_SWEEP_PARAM_PATH": str(parameters)}
            command = command_of_agent(quick)
            process = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=SECONDS)
            assert process.returncode == 0, process.stderr
            assert (tmp_path / "runs" / "sweep-sweep1" / trial / "best.safetensors").is_file()
        assert stub.runs() == ["trial1", "trial2"]
        assert any("val/psnr" in row for row in stub.rows("trial1"))
        sent = [event["variables"] for event in stub.events() if event["kind"] == "graphql"]
        buckets = [variables for variables in sent if variables.get("displayName")]
        assert {(made["name"], made["project"], made["entity"]) for made in buckets} == {
            ("trial1", "theirs", "somebody"), ("trial2", "theirs", "somebody"),
        }  # fmt: skip
        assert {made.get("sweep") for made in buckets} == {"sweep1"}


# Continuous integration ----------------------------------------------------------------------------------------------


def test_the_workflow_runs_the_ci_script():
    workflow = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)  # keep `on` a string: YAML would read it as true
    assert set(workflow["on"]) == {"push", "pull_request"}
    (job,) = workflow["jobs"].values()
    (script,) = [step["run"] for step in job["steps"] if "run" in step]
    assert (ROOT / script).stat().st_mode & 0o111
    for action in (step["uses"] for step in job["steps"] if "uses" in step):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action)
