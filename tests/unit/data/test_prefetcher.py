"""The thread that reads ahead: order, exceptions, threads and GPU of its work, and its end."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accel_restore.data.loader import Prefetcher
from accel_restore.errors import UserError


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "accel-restore-loader"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_exception_is_raised_at_the_position_of_its_element(error):
    def items():
        yield from range(5)
        raise error("of the data")

    assert list(Prefetcher(range(50))) == list(range(50)) and list(Prefetcher([])) == []
    background = Prefetcher(items())
    assert [next(background) for _ in range(5)] == list(range(5))
    with pytest.raises(error, match="of the data"):
        next(background)
    assert not loader_threads()


def test_the_background_thread_leaves_the_cores_to_training():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(Prefetcher(torch.get_num_threads() for _ in range(2))) == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_background_thread_works_on_the_gpu_of_the_thread_that_starts_it(monkeypatch):
    current = threading.local()  # as CUDA's: 0 in a new thread
    current.gpu = 1
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(current, "gpu", gpu))
    assert list(Prefetcher(torch.cuda.current_device() for _ in range(2))) == [1, 1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.cuda.current_device).result() == 0, "the control"


def test_closing_ends_a_blocked_thread():
    interval = 0.005
    sys.setswitchinterval(interval)  # Python's default, which a half-used iterator of another test may have changed
    with Prefetcher(iter(int, 1)) as background:  # endless
        assert next(background) == 0 and len(loader_threads()) == 1
        assert sys.getswitchinterval() < interval / 5, "training would wait for the thread that reads"
    assert not loader_threads() and sys.getswitchinterval() == pytest.approx(interval)
    with pytest.raises(StopIteration):
        next(background)
