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
