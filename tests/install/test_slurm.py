"""The Slurm batch file: its reaction to the time limit. On a real Slurm: time limit, requeue, resume."""

import os
import re
import signal
import subprocess
import time

import forked
import pytest
import slurm
import yaml
from runs import ROOT, last_weights, run_folder, small_config
from torch.distributed.run import get_args_parser
from watched import commits, same, status

FILE = ROOT / "launch" / "slurm.sbatch"
TEXT = FILE.read_text()
STEPS = 8  # per epoch; there are two epochs
PHOTOS = 4 * STEPS, 4  # training, validation

# The file alone ------------------------------------------------------------------------------------------------------


def options_of(text):
    """Return the options that a batch file gives to sbatch."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))


def test_the_file_is_bash_and_leaves_time_to_commit():
    subprocess.run(["bash", "-n", FILE], check=True)
    options = options_of(TEXT)
    assert options["ntasks-per-node"] == "1" and options["requeue"] == "" and options["open-mode"] == "append"
    to, name, lead = re.fullmatch(r"(B):(USR1)@(\d+)", options["signal"]).groups()
    assert (to, name) == ("B", "USR1")
    patience = int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", TEXT)[1])
    assert 30 < patience < int(lead)  # 30 seconds is torchrun's own timeout


def test_torchrun_accepts_the_arguments_of_the_file():
    (command,) = re.findall(r"exec torchrun (.*?)' torchrun", TEXT, re.DOTALL)
    command = re.sub(r'"\$[A-Z_]+"', "1", command.replace("\\\n", " ")).replace('"$@"', "--config mine.yaml")
    parsed = get_args_parser().parse_args(command.split())
    assert (parsed.training_script, parsed.training_script_args) == ("accel_restore.train", ["--config", "mine.yaml"])
    assert parsed.module and parsed.max_restarts == 0 and "SIGUSR1" in parsed.signals_to_handle
    with pytest.raises(SystemExit):  # control: unknown arguments are refused
        get_args_parser().parse_args(command.replace("--node-rank", "--node-rnk").split())


# Replacements for Slurm's programs: a step that runs until a signal arrives, and a record of the other calls.
STEP = """#!/bin/bash
trap 'exit $STEP_CODE' USR1
echo $$ > "$FOLDER/step"
[[ $STEP_LASTS ]] || exit $STEP_CODE
while sleep 0.02; do :; done
"""
STAND_INS = {
    "srun": STEP,
    "scancel": '#!/bin/bash\n[[ $* == "--signal=USR1 7" ]] && kill -USR1 "$(cat "$FOLDER/step")"\n',
    "scontrol": '#!/bin/bash\necho "$@" > "$FOLDER/asked"\n',
}


@pytest.mark.parametrize(
    ("is_told", "step_code", "code", "asked"),
    [(True, 1, 0, "requeue 7\n"), (True, 0, 0, None), (False, 1, 1, None), (False, 0, 0, None)],
    ids=["stopped by the limit", "told, but finished", "failed", "finished"],
)
def test_the_file_queues_a_job_again_only_after_its_time_limit(tmp_path, is_told, step_code, code, asked):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path), "STEP_CODE": str(step_code)}
    env |= {"STEP_LASTS": "yes" if is_told else "", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    script = subprocess.Popen(["bash", FILE], env={**os.environ, **env}, cwd=tmp_path)
    if is_told:
        wait_until(lambda: (tmp_path / "step").exists() and (tmp_path / "step").read_text(), 60)
        script.send_signal(signal.SIGUSR1)
    assert script.wait(60) == code
    assert ((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else None) == asked


def wait_until(is_so, seconds, tell=lambda: ""):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.05)


# A real Slurm --------------------------------------------------------------------------------------------------------

# A loss that waits in its sixth step until a file exists, so that the time limit arrives during the wait.
WAITING = """
import os, time
from accel_restore.losses.pixel import l1 as exact
calls = []
def l1(output, gt):
    calls.append(None)
    while len(calls) > 5 and not os.path.exists(os.environ["GO"]):
        time.sleep(0.05)
    return exact(output, gt)
"""


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm.missing():
        pytest.skip(reason)
    try:
        found = slurm.Cluster()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
    yield found
    found.close()


@pytest.fixture
def env(tmp_path):
    """Return a job's environment: where to find the package and the waiting loss, and the file that ends the wait."""
    (tmp_path / "waiting.py").write_text(WAITING)
    return {"PYTHONPATH": f"{ROOT}:{tmp_path}", "GO": str(tmp_path / "go")}


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """Return the weights after an uninterrupted run of two ranks."""
    config = {**configuration(photos, tmp_path_factory.mktemp("whole")), "loss": {"l1": 1.0}}
    assert forked.run(config, ranks=2, mode="no_curves") == [0, 0]
    return last_weights(config)


def configuration(photos, out, **checkpoint):
    commit = {"keep": 100, **checkpoint}
    return small_config(*photos, out, data={"batch_size": 2}, loss={"waiting:l1": 1.0}, checkpoint=commit)


def submit(cluster, config, env, *options):
    """Submit to two nodes with one process and one simulated GPU each; return the job's number and its log."""
    folder = run_folder(config).parent
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    log = folder / "job.log"
    options = ("--gpus-per-node=1", "--cpus-per-task=1", f"--output={log}", *options)
    return cluster.submit(*options, str(FILE), "--config", str(file), "--cpu", env=env, cwd=folder), log


def text(log):
    return log.read_text() if log.exists() else ""


@pytest.mark.sweep
def test_a_job_that_reaches_its_time_limit_is_queued_again_and_continues(cluster, photos, whole, env, tmp_path):
    config = configuration(photos, tmp_path / "job")
    number, log = submit(cluster, config, env, "--time=3", "--signal=B:USR1@100")
    wait_until(lambda: "the time limit is near" in text(log), 200, lambda: text(log))
    print_job(cluster, number)
    (tmp_path / "go").touch()
    wait_until(lambda: "is queued again" in text(log), 60, lambda: text(log))
    print_job(cluster, number)
    job = cluster.wait_for_end(number, 400)
    print_job(cluster, number)
    print(shortened(log), cluster.completed(number), sep="\n")

    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), text(log)
    assert int(job["Restarts"]) >= 1
    (stop, *_) = re.findall(r"accel-restore: stopped by SIGUSR1 after step (\d+); the same command", text(log))
    assert int(stop) in commits(config)
    assert f"job {number} is queued again and will continue" in text(log)
    assert re.search(rf"continues .* epoch 0, step {stop}\b", text(log)), text(log)
    assert status(config)["state"] == "finished" and status(config)["world_size"] == 2

    assert commits(config)[-1] == 2 * STEPS
    assert same(last_weights(config), whole)


@pytest.mark.sweep
def test_a_job_that_loses_a_node_is_queued_again_by_slurm_and_continues(cluster, photos, whole, env, tmp_path):
    config = configuration(photos, tmp_path / "job", every_steps=2)
    number, log = submit(cluster, config, env, "--time=10", "--signal=B:USR1@1")
    wait_until(lambda: 4 in commits(config), 120, lambda: text(log))
    node = f"NodeName={cluster.hosts.names[1]}"
    cluster.run("scontrol", "update", node, "State=DOWN", "Reason=test")
    wait_until(lambda: cluster.job(number)["JobState"] == "PENDING", 60, lambda: text(log))
    print_job(cluster, number)
    (tmp_path / "go").touch()
    cluster.run("scontrol", "update", node, "State=RESUME")
    job = cluster.wait_for_end(number, 300)
    print_job(cluster, number)
    print(shortened(log), cluster.completed(number), sep="\n")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), text(log)
    assert "is queued again" not in text(log)  # Slurm queued it, not the batch file
    assert re.search(r"continues .* step-00000004: epoch 0, step 4", text(log)), text(log)
    assert same(last_weights(config), whole)


@pytest.mark.sweep
def test_control_a_job_that_gets_no_signal_ends_at_its_limit(cluster, photos, env, tmp_path):
    config = configuration(photos, tmp_path / "job")
    number, log = submit(cluster, config, env, "--time=1", "--signal=B:CONT@1")  # a signal without effect
    job = cluster.wait_for_end(number, 300)
    assert (job["JobState"], job["Restarts"]) == ("TIMEOUT", "0"), text(log)
    assert "is queued again" not in text(log)


@pytest.mark.sweep
@pytest.mark.parametrize("how", ["a mistake", "cancelled"])
def test_failures_that_need_the_user_are_not_queued_again(cluster, photos, env, tmp_path, how):
    config = configuration(photos, tmp_path / "job")
    if how == "a mistake":
        config["optimizer"] = {"lrr": 1.0}
    number, log = submit(cluster, config, env, "--time=5", "--signal=B:USR1@1")
    if how == "cancelled":
        wait_until(lambda: run_folder(config).exists(), 90, lambda: text(log))
        cluster.run("scancel", number)
    job = cluster.wait_for_end(number, 120)
    assert (job["JobState"], job["Restarts"]) == ("FAILED" if how == "a mistake" else "CANCELLED", "0"), text(log)
    if how == "a mistake":
        assert text(log).count("optimizer.lrr: unknown key; did you mean 'optimizer.lr'?") == 1


def shortened(log):
    """Return what a job has printed, without tracebacks."""
    return re.sub(r"(?m)^(Traceback|  |torch\.).*\n", "", text(log))


def print_job(cluster, number):
    shown = cluster.job(number)
    kept = ("JobId", "JobState", "Reason", "Requeue", "Restarts", "ExitCode", "RunTime", "TimeLimit", "NodeList")
    print(cluster.run("squeue", "--format=%i %t %M %l %D %R"), {name: shown[name] for name in kept})
