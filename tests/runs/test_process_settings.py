"""`fit`, `load` and imports leave the settings of their process as they were: each case in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_settings_of_the_process_are_restored_by_fit_and_load():
    """Run `settings_of_the_process` in a process of its own."""
    file = Path(__file__).with_name("settings_of_the_process.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "--tb", "short", str(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout[-5000:]


def test_importing_the_decoders_changes_neither_filters_nor_limits_nor_loggers():
    program = """
import logging, random, warnings, numpy, tifffile
from PIL import Image
def state():
    log = logging.getLogger("tifffile")
    return list(warnings.filters), Image.MAX_IMAGE_PIXELS, list(log.handlers), log.level, logging.root.handlers[:]
before = state()
import accel_restore.data.decode, accel_restore.data.decode_tiff
assert state() == before, (state(), before)
draws = random.getstate()
import accel_restore
accel_restore.fit
assert random.getstate() == draws
"""
    subprocess.run([sys.executable, "-c", program], check=True)
