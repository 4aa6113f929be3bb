"""The memory that a process takes."""

import ctypes
import gc
import re
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory(most):
    """Within it, this process may take so many MB more, at any moment."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed would be taken again, unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = _peak()
    yield
    assert _peak() - before < most


def _peak():
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
