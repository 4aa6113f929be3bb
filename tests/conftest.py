"""Fixtures that several files of tests use."""

import os

import pytest

# Threads of several processes that wait for each other on few cores cost twice the time of one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_thread():
    """PyTorch computes in one thread: on a busy machine, waiting for a second one costs seconds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(request, tmp_path_factory):
    """The folders of training and validation photographs; `PHOTOS = 29, 3` in a module sets how many each holds."""
    from runs import make_photos

    train, val = request.module.PHOTOS
    root = tmp_path_factory.mktemp("photos")
    return make_photos(root / "train", train), make_photos(root / "val", val, seed=1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Finished runs that nothing interrupted, one for all workers: see `support/reference.py`."""
    from reference import Reference

    base = tmp_path_factory.getbasetemp()
    return Reference((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reference")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Plain `pytest` runs in up to four processes; what is named on the command line runs in this one."""
    return min(4, os.cpu_count() or 1) if config.args_source == config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items):
    """Files that mostly wait come first: started last, they would keep all other workers waiting."""
    items.sort(key=lambda item: item.path.stem not in ("test_two_hosts", "test_wandb_down"))
