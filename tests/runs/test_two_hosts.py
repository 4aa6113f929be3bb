"""A run on two hosts gives the same weights as on one. If the network is cut, the run ends in time and can continue."""

import signal
import subprocess
import sys
import time

import forked
import pytest
from hosts import ADDRESSES, DEVICE, TwoHosts
from runs import last_weights, run_folder, small_config
from watched import commits, kill_all, said, same, start_forked, start_launcher, status, wait_until_gone

PHOTOS = 16, 3  # training, validation
TIMEOUT = 6.0  # seconds, train.rank_timeout
STEPS = 4  # per epoch; there are two epochs
CUT_STEP = 6


@pytest.fixture(scope="module")
def hosts():
    try:
        pair = TwoHosts()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """Return the weights after a run of two ranks on one host."""
    config = configuration(photos, tmp_path_factory.mktemp("whole"), rank_timeout=60.0)
    assert forked.run(config, ranks=2, mode="no_curves") == [0, 0]
    return last_weights(config)


def configuration(photos, out, rank_timeout=TIMEOUT):
    return small_config(*photos, out, data={"batch_size": 2}, train={"rank_timeout": rank_timeout})


def on_two(hosts):
    return f"hosts={':'.join(hosts.names)}"


def assert_ended_by_the_cut(config, hosts):
    first, second = said(config)
    if "rank 0" in first:  # each side reports the other
        first, second = second, first
    assert first.startswith(f"accel-restore: no heartbeat from rank 1 ({hosts.names[1]}) for ")
    reasons = ("rank 0, or the network to it, has been unreachable", f"no heartbeat from rank 0 ({hosts.names[0]})")
    assert second.startswith(tuple(f"accel-restore: {reason} for " for reason in reasons))
    for line in (first, second):
        assert line.endswith(" s; the same command continues from the last commit")
    assert status(config)["state"] == "failed" and "rank" in status(config)["error"]
    assert commits(config) == [STEPS]


def test_the_same_weights_as_on_one_host(photos, whole, hosts, tmp_path):
    config = configuration(photos, tmp_path)
    assert forked.run(config, ranks=2, mode=f"no_curves,{on_two(hosts)}") == [0, 0], forked.printed(config)
    assert same(last_weights(config), whole)


def test_a_network_cut_ends_both_hosts_and_the_run_continues_later(photos, whole, hosts, tmp_path):
    config = configuration(photos, tmp_path)
    training = start_forked(config, on_two(hosts), f"linger=step:{CUT_STEP}:1", ranks=2)
    try:
        for rank in (0, 1):
            training.wait_for("step", str(CUT_STEP), rank)
        hosts.cut()
        began = time.monotonic()
        assert training.exit_codes() == [1, 1], forked.printed(config)
        print(f"ended {time.monotonic() - began:.1f} s after the cut, train.rank_timeout is {TIMEOUT} s")
    finally:
        hosts.restore()
    assert_ended_by_the_cut(config, hosts)
    assert "Traceback" not in forked.printed(config)
    assert forked.run(config, ranks=2, mode=f"no_curves,{on_two(hosts)}") == [0, 0], forked.printed(config)
    assert same(last_weights(config), whole)


def test_hosts_that_share_no_folder_train_but_cannot_continue(photos, hosts, tmp_path):
    config = configuration(photos, tmp_path)
    run_folder(config).mkdir()
    mode = f"no_curves,{on_two(hosts)},apart={run_folder(config)}"
    assert forked.run(config, "--stop-after", "6", ranks=2, mode=mode) == [143, 143], forked.printed(config)
    assert forked.run(config, ranks=2, mode=mode) == [2, 2]
    commit = run_folder(config) / "checkpoints" / "step-00000006"
    assert said(config)[-1] == (
        f"accel-restore: {commit}: not found on {hosts.names[1]} (rank 1); set run.dir to a folder that all "
        "machines share"
    )
    assert "Traceback" not in forked.printed(config)


def test_control_without_the_monitor_both_hosts_wait(photos, hosts, tmp_path):
    config = configuration(photos, tmp_path, rank_timeout=1800.0)  # torch's default; it limits collectives too
    training = start_forked(config, on_two(hosts), f"linger=step:{CUT_STEP}:1", "without=watch", ranks=2)
    try:
        for rank in (0, 1):
            training.wait_for("step", str(CUT_STEP), rank)
        hosts.cut()
        training.processes[0].join(1.5 * TIMEOUT)
        assert all(process.is_alive() for process in training.processes)
    finally:
        hosts.restore()
        training.signal(signal.SIGKILL)
        training.exit_codes()


def test_torchrun_on_each_host_ends_when_the_network_is_cut_and_the_run_continues(photos, whole, hosts, tmp_path):
    config, trainings = configuration(photos, tmp_path), []
    try:
        for host in (0, 1):
            torchrun = ["--nnodes", "2", "--node_rank", str(host), "--nproc_per_node", "1"]
            torchrun += ["--master_addr", ADDRESSES[0], "--master_port", "29400"]
            command = [*hosts.command(host), sys.executable, "-m", "torch.distributed.run", *torchrun]
            modes = ["parted", f"linger=step:{CUT_STEP}:1"]
            trainings.append(start_launcher(command, config, *modes, env={"GLOO_SOCKET_IFNAME": DEVICE}))
        for rank in (0, 1):
            trainings[0].wait_for("step", str(CUT_STEP), rank)
        hosts.cut()
        began = time.monotonic()
        assert [code for training in trainings for code in training.exit_codes()] == [1, 1], forked.printed(config)
        print(f"the launchers ended {time.monotonic() - began:.1f} s after the cut")
        wait_until_gone(config)
    finally:
        hosts.restore()
        kill_all(config)
    assert_ended_by_the_cut(config, hosts)
    assert forked.run(config, ranks=2, mode="no_curves") == [0, 0]  # continued on one host
    assert same(last_weights(config), whole)
