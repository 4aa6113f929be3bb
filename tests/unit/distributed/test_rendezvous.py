"""Ranks meet within a limit. Who waits for whom, and why, is reported early."""

import socket
import threading

import pytest

from accel_restore.distributed import rendezvous
from accel_restore.distributed.rendezvous import meet
from accel_restore.errors import UserError
from accel_restore.utils.launch import find_launch

SECONDS = 1.0


def launch(rank, world_size, port, address="127.0.0.1", **others):
    peers = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": address, "MASTER_PORT": port, **others}
    return find_launch({name: str(value) for name, value in peers.items()})


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("world_size", [2, 5])
def test_all_ranks_meet_without_a_word(port, capfd, world_size):
    stores = []
    threads = [
        threading.Thread(target=lambda rank=rank: stores.append(meet(launch(rank, world_size, port), 60.0, "key")))
        for rank in reversed(range(world_size))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == world_size
    assert capfd.readouterr().err == ""


def test_a_process_alone_meets_nobody():
    assert meet(find_launch({}), SECONDS, "key") is None


@pytest.mark.parametrize(("rank", "missing"), [(0, "ranks 1, 2"), (1, "rank 0")])
def test_a_rank_reports_whom_it_waits_for_and_which_variables_say_so(port, capfd, rank, missing):
    with pytest.raises(UserError) as raised:
        meet(launch(rank, 3, port), SECONDS, "train.rank_timeout")
    said = capfd.readouterr().err
    assert said.startswith(f"accel-restore: rank {rank} of 3 waits for {missing} at 127.0.0.1:{port}")
    for text in (said, str(raised.value)):
        assert f"RANK={rank}, WORLD_SIZE=3, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}" in text
        assert "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT" in text
    assert "at most 1 s (train.rank_timeout)" in said
    assert raised.value.is_reporter


def test_one_rank_of_a_host_reports_that_rank_0_is_missing(port, capfd):
    with pytest.raises(UserError) as raised:
        meet(launch(5, 8, port, LOCAL_RANK=1), SECONDS, "key")
    assert not raised.value.is_reporter and capfd.readouterr().err == ""
    with pytest.raises(UserError) as raised:
        meet(launch(4, 8, port, LOCAL_RANK=0), SECONDS, "key")
    assert raised.value.is_reporter and "rank 4 of 8 waits for rank 0" in capfd.readouterr().err


@pytest.mark.parametrize("address", ["no-such-host.invalid", "a..b", "x" * 70])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_unknown_host_is_named(port, capfd, address, rank):
    with pytest.raises(UserError, match=f"for the host name MASTER_ADDR={address}, which is unknown"):
        meet(launch(rank, 2, port, address), 0.5, "key")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_another_service_uses_is_named_by_rank_0(host):
    with socket.create_server((host, 0)) as service:
        port = service.getsockname()[1]
        with pytest.raises(UserError, match=f"MASTER_PORT={port}: rank 0 cannot listen there"):
            meet(launch(0, 2, port), 60.0, "key")


def test_a_service_that_never_answers_is_not_waited_for_without_a_limit(monkeypatch):
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        with pytest.raises(UserError, match=f"no answer from rank 0 at 127.0.0.1:{port}.*set another MASTER_PORT"):
            meet(launch(1, 2, port), 60.0, "key")


def test_a_rank_with_an_agent_waits_for_the_agents_store(port):
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "job", "LOCAL_RANK": 0}
    with pytest.raises(UserError, match=f"for the torchrun of rank 0 at 127.0.0.1:{port}"):
        meet(launch(0, 2, port, **agent), 0.5, "key")
