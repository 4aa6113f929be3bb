"""The user's callbacks on two ranks: an error on one rank ends all of them, and so does a request to stop."""

import json

import forked
import pytest
from reference import configuration as reference_configuration
from runs import epochs_of, last_weights, run_folder
from watched import same


def configuration(reference, out, *callbacks):
    config = reference_configuration(reference.photos, out, 2, train={"rank_timeout": 60.0})
    return {**config, "callbacks": [{"name": "own_callbacks:OnRank", **own} for own in callbacks]}


def status_of(config):
    return json.loads((run_folder(config) / "status.json").read_text())


@pytest.mark.parametrize(
    ("method", "ranks"),
    [("on_step", [1]), ("on_step", [0]), ("on_step", [0, 1]), ("on_validation_image", [1]), ("on_epoch", [1]),
     ("on_exit", [1])],
)  # fmt: skip
def test_a_callback_that_raises_on_some_ranks_ends_all_of_them_with_its_name(reference, tmp_path, method, ranks):
    config = configuration(
        reference,
        tmp_path,
        {"what": "raise", "method": method, "ranks": ranks, "step": 6},
        {"what": "nothing", "method": "", "ranks": []},
    )
    assert forked.run(config, ranks=2) == [1, 1], forked.printed(config)
    lines = [line for line in forked.printed(config).splitlines() if line.startswith("accel-restore: ")]
    (line,) = lines
    what = f"the callback 'own_callbacks:OnRank' failed in {method}, after step"
    assert any(f"accel-restore: rank {rank}: {what}" in line for rank in ranks)
    assert "ValueError: too hot (own_callbacks.py, line" in line and "Traceback" not in forked.printed(config)
    assert line.endswith("correct it, and the same command continues from the last commit")
    status = status_of(config)
    assert status["state"] == "failed" and status["error"] in line
    for rank in (0, 1):
        assert f"on_exit on rank {rank} of nothing" in forked.printed(config)
    config["callbacks"] = []
    assert forked.run(config, ranks=2) == [0, 0], forked.printed(config)
    assert same(last_weights(config), reference.weights(2))


@pytest.mark.parametrize("method", ["on_step", "on_epoch"])
def test_a_stop_that_one_rank_asks_for_ends_all_in_the_same_epoch(reference, tmp_path, method):
    config = configuration(reference, tmp_path, {"what": "stop", "method": method, "ranks": [1]})
    assert forked.run(config, ranks=2) == [0, 0], forked.printed(config)
    assert (status_of(config)["state"], status_of(config)["stopped"]) == ("finished", "it is late")
    assert len(epochs_of(config)) == 1
    config["callbacks"] = []
    assert forked.run(config, ranks=2) == [0, 0], forked.printed(config)
    assert same(last_weights(config), reference.weights(2))
