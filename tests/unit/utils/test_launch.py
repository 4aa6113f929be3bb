"""One function decides what the launch is. Variables left over from a launcher neither silence a command nor end it."""

import os

import pytest

from accel_restore import cli
from accel_restore.errors import UserError
from accel_restore.utils import launch
from accel_restore.utils.launch import Launch, find_launch, is_main, is_reporter, is_restarted, set_joined

PEERS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **PEERS}
ELASTIC = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}

LEFTOVERS = {  # none of them starts several processes
    "rank": {"RANK": "1"},
    "Open MPI's rank": {"OMPI_COMM_WORLD_RANK": "1"},
    "PMI's rank": {"PMI_RANK": "1"},
    "MVAPICH's rank": {"MV2_COMM_WORLD_RANK": "1"},
    "local rank": {"LOCAL_RANK": "3"},
    "empty": {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""},
    "address": PEERS,
    "one process": {"RANK": "1", "WORLD_SIZE": "1"},
    "one process of MPI": {"PMI_RANK": "0", "PMI_SIZE": "1"},
    "a restart": {"TORCHELASTIC_RESTART_COUNT": "1"},
    "rank without a number": {"RANK": "first"},
    "an agent": {"TORCHELASTIC_USE_AGENT_STORE": "True"},
}
CONTRADICTIONS = {  # variables, and what the message names
    "no rank": ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT"),
    "no address": ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT"),
    "no port": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"}, "MASTER_PORT"),
    "an empty rank": ({"RANK": "", "WORLD_SIZE": "2", **PEERS}, "RANK"),
    "a rank too large": ({"RANK": "2", "WORLD_SIZE": "2", **PEERS}, "RANK=2"),
    "a negative rank": ({"RANK": "-1", "WORLD_SIZE": "2", **PEERS}, "RANK=-1"),
    "a world size in words": ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    "no processes": ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    "no port number": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT=x"),
    "a port too large": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "=70000"),
    "a local rank": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **PEERS}, "LOCAL_RANK=x"),
    "MPI without an address": (OPEN_MPI, "MASTER_ADDR, MASTER_PORT"),
    "PMI without a rank": ({"PMI_SIZE": "2"}, "PMI_RANK"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Return a function that sets variables in an environment without a launcher."""
    for name in (*launch._ALL, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield set_all
    set_joined(None)


@pytest.mark.parametrize("variables", [{}, *LEFTOVERS.values()], ids=["nothing", *LEFTOVERS])
def test_a_process_that_no_launcher_started_is_alone(environment, variables):
    environment(variables)
    assert find_launch() == Launch()
    assert is_main() and is_reporter() and not is_restarted()


def test_a_complete_launch_is_found():
    found = find_launch({**TORCHRUN, **ELASTIC})
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (1, 4, 1, 2)
    assert (found.address, found.port, found.has_agent, found.attempt) == ("node1", 29500, True, 2)
    assert found.variables == ("RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=node1", "MASTER_PORT=29500")
    by_hand = find_launch({"RANK": "0", "WORLD_SIZE": "2", **PEERS})
    assert (by_hand.local_rank, by_hand.has_agent, by_hand.attempt) == (None, False, 0)


def test_a_launch_by_mpi_needs_the_address_of_rank_0():
    found = find_launch({**OPEN_MPI, **PEERS})
    assert (found.rank, found.world_size, found.local_rank) == (1, 4, 0)
    assert found.variables[:2] == ("OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4")


def test_the_variables_of_torchrun_come_first():
    found = find_launch({**TORCHRUN, "PMI_RANK": "0", "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "3"})
    assert (found.rank, found.world_size) == (1, 4)


def test_a_group_of_one_needs_no_address_of_others():
    found = find_launch({**TORCHRUN, **ELASTIC, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert (found.rank, found.world_size, found.address, found.attempt) == (0, 1, "127.0.0.1", 2)


@pytest.mark.parametrize(("variables", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradictory_launch_names_its_variables_and_the_remedy(environment, variables, named):
    environment(variables)
    with pytest.raises(UserError) as raised:
        find_launch()
    assert named in str(raised.value) and "to run one process, remove the variables: unset " in str(raised.value)
    assert is_main() and is_reporter()


def test_torch_and_accelerate_see_the_launch_alone(environment, monkeypatch):
    environment({"RANK": "1", "LOCAL_RANK": "1", "PMI_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"})
    before = dict(os.environ)
    with Launch().environment():
        assert not {"RANK", "LOCAL_RANK", "PMI_SIZE", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ)
    with Launch().environment(settings=True):
        assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    with find_launch({**OPEN_MPI, **PEERS}).environment():
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("1", "4", "0")
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node1", "29500")
    assert dict(os.environ) == before


def test_only_rank_0_reports_for_torchrun_and_for_ranks_that_have_met(environment):
    environment(TORCHRUN)
    assert is_reporter(), "its peers may not exist"
    set_joined(1)
    assert not is_reporter()
    set_joined(None)
    environment(ELASTIC)
    assert not is_reporter() and not is_main()
    environment({"RANK": "0"})
    assert is_reporter() and is_main()


def test_a_restart_counts_only_in_its_own_job(environment):
    environment({**TORCHRUN, **ELASTIC})
    assert is_restarted()
    environment({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert not is_restarted()
    environment({"SLURM_RESTART_COUNT": "1"})
    assert not is_restarted()
    environment({"SLURM_JOB_ID": "7"})
    assert is_restarted()


COMMANDS = {
    "train": ["train", "nonsense=1"],
    "config": ["config", "nonsense=1"],
    "check": ["check", "nonsense=1"],
    "restore": ["restore", "missing.safetensors", "missing.png", "-o", "out.png", "--cpu"],
    "evaluate": ["evaluate", "missing.safetensors", "--gt", "a", "--input", "b", "--cpu"],
    "report": ["report", "missing"],
    "cache": ["cache", "delete"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variables", LEFTOVERS.values(), ids=LEFTOVERS)
def test_a_command_that_is_not_launched_speaks_for_itself(
    environment, tmp_path, monkeypatch, capsys, command, variables
):
    monkeypatch.chdir(tmp_path)
    environment(variables)
    assert cli.main(COMMANDS[command]) == 2
    assert capsys.readouterr().err.startswith("accel-restore: ")


@pytest.mark.parametrize("command", ["restore", "evaluate"])
@pytest.mark.parametrize(("variables", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_command_that_shares_its_work_rejects_a_contradictory_launch(
    environment, tmp_path, monkeypatch, capsys, command, variables, named
):
    monkeypatch.chdir(tmp_path)
    environment(variables)
    assert cli.main(COMMANDS[command]) == 2
    assert named in capsys.readouterr().err
