"""Real processes with the variables of a launcher that did not start them, or whose other ranks do not come."""

import json
import socketserver
import threading

import pytest
import runs
from runs import free_port, run_folder, small_config, succeed

PHOTOS = 5, 2
LEFTOVERS = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_RANK": "1",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "ACCELERATE_MIXED_PRECISION": "fp8",
}


def configuration(photos, out):
    return small_config(*photos, out, train={"epochs": 1, "rank_timeout": 6})


def test_a_run_with_leftover_variables_is_alone_and_obeys_overwrite(photos, tmp_path):
    config = configuration(photos, tmp_path)
    succeed(runs.launch(config, env=LEFTOVERS))
    before = (run_folder(config) / "best.safetensors").stat().st_mtime_ns
    again = succeed(runs.launch(config, "--overwrite", env=LEFTOVERS))
    assert (run_folder(config) / "best.safetensors").stat().st_mtime_ns != before
    assert "epoch" in again.stdout
    assert json.loads((run_folder(config) / "status.json").read_text())["world_size"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_peers_says_whom_it_waits_for_and_gives_up(photos, tmp_path, rank):
    config, port = configuration(photos, tmp_path), free_port()
    env = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = runs.launch(config, env=env)
    assert done.returncode == 2 and done.stdout == ""
    waits, gave_up = done.stderr.splitlines()
    assert f"rank {rank} of 2 waits for rank {1 - rank} at 127.0.0.1:{port}, at most 6 s (train.rank_timeout)" in waits
    assert f"rank {rank} of 2 has waited 6 s for rank {1 - rank}" in gave_up
    assert f"RANK={rank}, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}" in gave_up
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


def test_a_service_that_is_no_rank_leaves_no_stack_trace(photos, tmp_path):
    class Answers(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1)
            self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answers) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        port = service.server_address[1]
        env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = runs.launch(configuration(photos, tmp_path), env=env)
        service.shutdown()
    assert done.returncode == 2 and done.stdout == ""
    assert all(line.startswith("accel-restore: rank 1 of 2 ") for line in done.stderr.splitlines()), done.stderr
