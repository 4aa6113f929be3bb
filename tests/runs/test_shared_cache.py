"""Several processes open, build or load the same decoded images and rows at the same time."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_files import make_unusable, save
from runs import clean_environment

from accel_restore.data.cache import open_stores
from accel_restore.data.cache_folder import list_stores

LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")


def open_one(files, cache: Path):
    return open_stores([files], 3, cache)[0]


OPENER = """
import sys, time, types
from pathlib import Path
import datasets
from accel_restore.data import cache
folder, lock, me, other = Path(sys.argv[1]), *sys.argv[2:]
if lock == "unlocked":
    cache.FileLock = lambda _: types.SimpleNamespace(acquire=lambda timeout=0: None, release=lambda: None)
read = cache.read_image
cache.read_image = lambda *given: time.sleep(1) or read(*given)
folder.with_name(me).touch()
while not folder.with_name(other).exists():
    time.sleep(0.01)
def track(items, total, what):
    print("built", flush=True)
    return items
opened = cache.open_stores([sorted(folder.parent.glob("*.png"))], 3, folder, track, log=print)[0]
print(opened.store[0].size if opened.store else opened.problems)
"""


def test_two_processes_that_open_at_once_build_the_store_once(tmp_path):
    built = {}
    for lock in ("locked", "unlocked"):
        save(tmp_path / lock / "a.png")
        command = [sys.executable, "-c", OPENER, str(tmp_path / lock / "cache"), lock]
        both = [subprocess.Popen([*command, *who], stdout=-1, text=True) for who in (("1", "2"), ("2", "1"))]
        said = [process.communicate(timeout=60)[0] for process in both]
        built[lock] = sum(text.count("built") for text in said)
        if lock == "locked":  # without the lock, one process may remove what the other is writing
            assert [process.returncode for process in both] == [0, 0]
            assert sum(text.count("waiting for another process") for text in said) == 1
    assert built == {"locked": 1, "unlocked": 2}  # the second is the control


def test_two_processes_decode_a_damaged_image_once_and_report_the_same(tmp_path):
    make_unusable("truncated", tmp_path / "bad.png")
    save(tmp_path / "good.png")
    command = [sys.executable, "-c", OPENER, str(tmp_path / "cache"), "locked"]
    both = [subprocess.Popen([*command, *who], stdout=-1, text=True) for who in (("1", "2"), ("2", "1"))]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sum(text.count("built") for text in said) == 1
    assert all("bad.png: is damaged" in text.splitlines()[-1] for text in said)
    again = open_one([tmp_path / "bad.png", tmp_path / "good.png"], cache=tmp_path / "cache")
    assert len(again.problems) == 1 and again.sizes == [(20, 30), (20, 30)]
    save(tmp_path / "bad.png")  # repaired
    assert open_one([tmp_path / "bad.png", tmp_path / "good.png"], cache=tmp_path / "cache").store is not None


def test_a_killed_builder_leaves_nothing_that_is_mistaken_for_a_store(tmp_path):
    files = [save(tmp_path / f"{name}.png") for name in "ab"]
    (tmp_path / "2").touch()
    code = OPENER.replace("time.sleep(1)", "time.sleep(given[0].stem == 'b' and 60)")
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), "locked", "1", "2"]
    builder = subprocess.Popen(command, stdout=-1, text=True)
    assert builder.stdout.readline() == "built\n"
    while not list((tmp_path / "cache").glob("*.tmp")):
        time.sleep(0.01)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    (left,) = list_stores(tmp_path / "cache")
    assert left.name.endswith(".tmp") and not left.description
    assert len(open_one(files, cache=tmp_path / "cache").store) == 2
    assert not list((tmp_path / "cache").glob("*.tmp"))


READER = """
import sys
from pathlib import Path
from accel_restore.data.cache import open_stores
store = open_stores([[Path(sys.argv[1])]], 3, Path(sys.argv[2]))[0].store
total = int(store[0].sum())
print("read", flush=True)
sys.stdin.readline()
"""


@LINUX
def test_two_processes_share_one_copy_in_memory(tmp_path):
    image = np.zeros((3000, 3000, 3), np.uint8)
    path, cache = save(tmp_path / "a.png", image), tmp_path / "cache"
    open_one([path], cache=cache)
    command = [sys.executable, "-c", READER, str(path), str(cache)]
    readers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["read\n"] * 2
    maps = [Path(f"/proc/{reader.pid}/smaps").read_text(encoding="utf-8") for reader in readers]
    shares = [int(re.search(r"cache/\w+\.arrow\n(?:.*\n)*?Pss: +(\d+) kB", text)[1]) * 1024 for text in maps]
    for reader in readers:
        reader.communicate("\n", timeout=60)
    assert 0.9 * image.nbytes < sum(shares) < 1.2 * image.nbytes  # one copy for both processes


PROCESS = """
import sys
from accel_restore.config.sets import Source
from accel_restore.data.hf_datasets import find_rows
assert "datasets" not in sys.modules
pairs, problems = find_rows(Source(dataset=sys.argv[1], gt="clean", input="noisy"), "data.train")
assert not problems, problems
print([(pair.name, pair.gt.identity, pair.input.identity) for pair in pairs])
nothing, problems = find_rows(Source(dataset=sys.argv[2], gt="clean"), "data.train")
print(len(nothing), problems)
"""


def test_processes_that_load_at_once_find_the_same_rows(tmp_path):
    source, names = tmp_path / "made.parquet", [f"{name}.png" for name in "cab"]
    cells = [{"bytes": save(tmp_path / name).read_bytes(), "path": name} for name in names]
    features = datasets.Features({"clean": datasets.Image(), "noisy": datasets.Image()})
    datasets.Dataset.from_dict({"clean": cells, "noisy": cells}, features=features).to_parquet(source)
    environment = {**clean_environment(), "HF_DATASETS_CACHE": str(tmp_path / "new"), "HF_HOME": str(tmp_path / "home")}
    (tmp_path / "bad.parquet").write_text("no parquet")
    command = [sys.executable, "-c", PROCESS, str(source), str(tmp_path / "bad.parquet")]
    both = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) for _ in range(2)]
    (one, errors), (two, more) = (process.communicate(timeout=120) for process in both)
    assert errors == more == "" and one == two
    pairs, problems = one.splitlines()
    assert len(eval(pairs)) == 3 and "bad.parquet cannot be loaded" in problems
