"""The user decides how many threads compute; without a word from him, the processes of a machine share its cores."""

import os

import pytest

from accel_restore.utils import threads

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "job", "OMP_NUM_THREADS": "1", **TORCHRUN, "LOCAL_WORLD_SIZE": "4"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("environment", "parents", "expected"),
    [
        ({}, b"", 9),
        ({"OMP_NUM_THREADS": "1"}, b"", None),  # of the command itself
        (ACCELERATE, b"HOME=/root\0", 9),
        (ACCELERATE, b"HOME=/root\0OMP_NUM_THREADS=1\0", None),  # of the user, before accelerate launch
        ({**ACCELERATE, "OMP_NUM_THREADS": "64"}, b"HOME=/root\0", 9),  # the cores of the machine, of a container's 9
        (ACCELERATE, None, None),  # not Linux: it cannot be known
        (ELASTIC, b"", 2),
        (ELASTIC, b"OMP_NUM_THREADS=1\0", None),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "16"}, b"", 1),
        ({name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}, b"", None),
    ],
)
def test_the_users_number_of_threads_is_kept_and_a_launchers_is_not(
    environment, parents, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(threads, "num_cores", lambda pid=0: 9)
    start_in(environment, monkeypatch)
    if parents is not None:
        (tmp_path / "environ").write_bytes(parents)
        (tmp_path / "cmdline").write_bytes(b"accelerate\0launch\0train.py\0")
    assert threads.num_threads(tmp_path) == expected


def start_in(environment, monkeypatch):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", *TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("option", ["--num_cpu_threads_per_process", "--num-cpu-threads-per-process=1"])
@pytest.mark.parametrize("count", ["1", "3"])
def test_an_option_of_the_launcher_is_the_users_number_of_threads(option, count, monkeypatch, tmp_path):
    start_in({**ACCELERATE, "OMP_NUM_THREADS": count}, monkeypatch)
    (tmp_path / "environ").write_bytes(b"HOME=/root\0")
    (tmp_path / "cmdline").write_bytes(f"accelerate\0launch\0{option}\0{count}\0train.py\0".encode())
    assert threads.num_threads(tmp_path) is None


@pytest.mark.parametrize(
    ("own", "of_launcher", "expected"),
    [(32, 32, 8), (8, 32, 8), (1, 32, 1), (16, 32, 8), (4, 4, 1), (8, 1, 2)],
    ids=["unbound", "a quarter each", "a core each", "half, shared by two", "bound with the launcher", "no launcher"],
)
def test_processes_that_are_bound_to_cores_of_their_own_use_them_all(own, of_launcher, expected, monkeypatch):
    monkeypatch.setattr(threads, "num_cores", lambda pid=0: of_launcher if pid == os.getppid() else own)
    start_in({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, monkeypatch)
    assert threads.num_threads() == expected


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(own, expected, monkeypatch):
    environment = dict(own)
    monkeypatch.setattr(threads.os, "environ", environment)
    threads.spin_briefly()
    assert environment.get("GOMP_SPINCOUNT") == expected
