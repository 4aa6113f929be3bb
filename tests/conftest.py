"""Fixtures shared by several test files."""

import os

import pytest

# On few cores, processes that wait for each other take twice as long with several threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_thread():
    """Run PyTorch in one thread: on a busy machine, waiting for a second thread costs seconds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(request, tmp_path_factory):
    """Return the folders of training and validation photographs; the module's `PHOTOS = 29, 3` sets their numbers."""
    from runs import make_photos

    train, val = request.module.PHOTOS
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", train), make_photos(root / "val", val, seed=1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Return finished, uninterrupted runs, shared by all workers: see `support/reference.py`."""
    from reference import Reference

    base = tmp_path_factory.getbasetemp()
    return Reference((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reference")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return up to four workers for plain `pytest`, none if tests are named on the command line."""
    return min(4, os.cpu_count() or 1) if config.args_source == config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items):
    """Put files that mostly wait first: started last, they would delay the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_two_hosts", "test_wandb_down"))
