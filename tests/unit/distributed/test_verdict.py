"""Who reports a failure, and whom it concerns, follows from a verdict, never from the words of a message."""

import json
import threading
from types import SimpleNamespace

import pytest
from runs import make_photos, run_folder, small_config

from accel_restore import fit
from accel_restore.distributed import heartbeat
from accel_restore.distributed.heartbeat import RankMonitor, Verdict
from accel_restore.trainer import run

WORDS = ["rank 0 is not to blame", "rank 3, 5 has died", "ranks 0 and 1: gloo Connection closed by peer"]


@pytest.mark.parametrize("words", WORDS)
def test_an_error_that_speaks_of_ranks_is_recorded_by_a_single_process(tmp_path, monkeypatch, words):
    def fail(*arguments):
        raise RuntimeError(words)

    monkeypatch.setattr(run, "train", fail)
    photos, val = make_photos(tmp_path / "photos", 3), make_photos(tmp_path / "val", 1, seed=1)
    config = small_config(photos, val, tmp_path)
    with pytest.raises(RuntimeError) as raised:
        fit(config, cpu=True)
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert str(raised.value) == words and (status["state"], status["error"]) == ("failed", words)


class Store:
    """The key-value store of a group, without connections."""

    def __init__(self):
        self.values = {}

    def compare_set(self, key, expected, value):
        self.values.setdefault(key, value)


@pytest.fixture
def monitor(monkeypatch):
    """Return the monitor of rank 0 of six on one machine; the killed PIDs, in `killed`."""
    killed = []
    monkeypatch.setattr(heartbeat.os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: None)
    made = RankMonitor(SimpleNamespace(process_index=0, num_processes=6), 0.02, lambda verdict: None)
    made.store, made.killed = Store(), killed
    for rank, peer in made.peers.items():
        peer.machine, peer.pid, peer.heard = heartbeat._machine(), 1000 + rank, made.contact
    return made


class SlowStore:
    """A store of which a call is under way until `answers` is set."""

    def __init__(self):
        self.called, self.answers = threading.Event(), threading.Event()

    def clone(self):
        return self

    def set(self, key, value):
        self.called.set()
        self.answers.wait()

    def check(self, keys):
        return False


@pytest.mark.parametrize("answers", [True, False])
def test_the_end_of_a_run_waits_for_the_stores_answer_but_not_for_ever(monkeypatch, answers):
    store = SlowStore()
    monkeypatch.setattr(heartbeat.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(heartbeat, "gather_object", lambda own: own * 2)
    watch = RankMonitor(SimpleNamespace(process_index=1, num_processes=2), 60.0, lambda verdict: None)
    watch.interval = 5.0 if answers else 0.01
    watch.start()
    watch.wake.set()
    store.called.wait()
    if answers:
        threading.Timer(0.1, store.answers.set).start()
    watch.close()
    assert watch.exchange.is_alive() is not answers
    store.answers.set()
    watch.exchange.join()


def test_all_ranks_that_have_died_are_in_the_verdict(monitor, monkeypatch):
    monkeypatch.setattr(heartbeat, "_EVIDENCE_SECONDS", 0.0)
    for rank in (3, 5):
        monitor.peers[rank].heard -= 60
    for rank in (1, 2, 4):
        monitor.peers[rank].heard += 60
    monitor.contact += 60
    verdict = monitor.find_cause(heartbeat.distributed.DistBackendError("Connection closed by peer"))
    assert (verdict.ranks, verdict.kind, verdict.reporter) == ((3, 5), "died", 0)
    assert "ranks 3, 5 have died" in verdict.text


@pytest.mark.parametrize("ranks", [(3, 5), (1, 2, 3, 4, 5), (2,)])
def test_all_ranks_of_a_verdict_are_ended_and_no_others(monitor, ranks):
    monitor._end(Verdict(ranks, "silent", "rank 4 and rank 1 are only mentioned"))
    assert monitor.killed == [1000 + rank for rank in ranks]


@pytest.mark.parametrize(("ranks", "reporter"), [((3, 5), 0), ((0,), 1), ((0, 1, 2), 3), ((1,), 0)])
def test_the_first_rank_that_is_not_at_fault_reports(ranks, reporter):
    verdict = Verdict(ranks, "died", "rank 9 is mentioned")
    assert verdict.reporter == reporter
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_the_own_words_of_a_lost_connection_are_kept(monitor, monkeypatch):
    monkeypatch.setattr(heartbeat, "_EVIDENCE_SECONDS", 0.0)
    for peer in monitor.peers.values():
        peer.heard += 60
    monitor.contact += 60
    verdict = monitor.find_cause(RuntimeError("Connection refused by the data base\nat line 1"))
    assert verdict.text.endswith("(Connection refused by the data base)")
