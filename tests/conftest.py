"""Fixtures that several files of tests use."""

import pytest


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


def pytest_collection_modifyitems(items):
    """Files that mostly wait come first: started last, they would keep all other workers waiting."""
    items.sort(key=lambda item: item.path.stem not in ("test_two_hosts", "test_wandb_down", "test_wandb_rank"))
