"""Fixtures that several files of tests use."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """On a busy machine, waiting for a second thread costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    """Files that mostly wait come first: begun last, they would keep all the others' processors waiting."""
    items.sort(key=lambda item: item.path.stem not in ("test_two_hosts", "test_wandb_down", "test_wandb_rank"))
