"""The memory used by a process, in MB."""

import ctypes
import gc
import re
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory(most):
    """Assert that the code within needs less than `most` MB of additional memory at any moment."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by earlier tests would be reused unnoticed
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = _peak()
    yield
    taken = _peak() - before
    assert taken < most, f"{taken:.0f} MB, not < {most}"


def _peak():
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1024
