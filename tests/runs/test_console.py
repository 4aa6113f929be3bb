"""Console output on a terminal, in a log and in CI; each case runs in its own process."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import forked
import pyte
import pytest
from runs import ROOT, clean_environment, make_photos, small_config

from accel_restore.trainer.summary import report_result

STEPS = 100
# A training of 100 steps, one per second. The code in place of END runs after the validation in the middle.
PLAY = """
import itertools, os, signal, sys
from accel_restore.tracking import console
clock = itertools.count()
now = [0.0]
console.time.monotonic = lambda: now[0]
out = console.Console(True)
out.table("plan", [("devices", "1 × cpu"), ("written to", "a folder with a long name " * 4)])
out.start(2, 100, 0)
for step in range(1, 101):
    now[0] += 1
    out.advance(step // 51, step)
    out.update(step // 51, step, 0.0123456, 9.88e-4, 123.4)
    if out.progress is not None:
        out.progress.refresh()
    if step == 50:
        out.scores("epoch 1 · val loss 0.01 ← best", always=True)
        END
out.stop()
"""
RICH_ALONE = """
import os, signal
from rich.progress import Progress
progress = Progress()
progress.add_task("", total=2)
progress.start()
os.kill(os.getpid(), signal.SIGKILL)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
SERVICES = ("CI", "NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES", "PYTHONIOENCODING", "TTY_COMPATIBLE")


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in clean_environment().items() if name not in SERVICES}
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **more}


def in_terminal(code: str, exit_code: int = 0, **more: str) -> tuple[bytes, pyte.Screen]:
    """Return what a process prints on a terminal of 80 columns, and what the terminal shows at the end."""
    ours, theirs = pty.openpty()
    screen = pyte.Screen(80, 40)
    process = subprocess.Popen(
        ["sh", "-c", 'stty cols 80 rows 40; exec "$0" -c "$1"', sys.executable, code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=_environment(more),
    )
    os.close(theirs)
    output, stream = b"", pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the process has closed its side
            data = b""
        if not data:
            break
        output += data
        stream.feed(data)
    os.close(ours)
    assert process.wait() == exit_code, output.decode()
    return output, screen


def in_pipe(code: str, **more: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, env=_environment(more))
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.decode()


def _with_end(action: str = "pass") -> str:
    return PLAY.replace("END", action)


def _is_plain(output: str) -> bool:
    """Return whether there are no control characters, and one progress line every 30 seconds."""
    lines = [line.strip() for line in output.splitlines()]
    steps = [int(re.search(r"step (\d+)/100", line)[1]) for line in lines if "samples/s" in line]
    return "\x1b" not in output and steps == [30, 60, 90] and lines.count("epoch 1 · val loss 0.01 ← best") == 1


def test_a_terminal_of_80_columns_shows_a_progress_bar_on_one_line():
    output, screen = in_terminal(_with_end())
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown[-1].startswith("2/2 epochs ━") and shown[-1].endswith(
        "loss 0.01235 · lr 0.000988 · 123/s · 0:00:00 left"
    )
    assert sum("━" in line for line in shown) == 1 and "100/100" in shown[-1]
    assert shown[-2] == "epoch 1 · val loss 0.01 ← best"
    assert "0:00:50 left" in output.decode(), "the time left is extrapolated from the pace so far"
    assert not screen.cursor.hidden


def test_the_bar_of_one_epoch_is_in_the_singular():
    _, screen = in_terminal(_with_end().replace("out.start(2, 100, 0)", "out.start(1, 100, 0)"))
    assert any(line.startswith("1/1 epoch ━") for line in screen.display)


def test_a_killed_process_leaves_the_cursor_visible():
    _, screen = in_terminal(_with_end(KILL), -signal.SIGKILL)
    assert "━" in "".join(screen.display) and not screen.cursor.hidden
    _, screen = in_terminal(RICH_ALONE, -signal.SIGKILL)
    assert screen.cursor.hidden, "control: rich alone hides it"


def test_no_color_disables_colours():
    colour = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|38;[25];[\d;]+|9[0-7])m")
    assert colour.search(in_terminal(_with_end())[0])
    assert not colour.search(in_terminal(_with_end(), NO_COLOR="1")[0])


def test_output_is_plain_lines_on_pipes_dumb_terminals_and_ci():
    assert _is_plain(in_pipe(_with_end()))
    log = in_pipe(_with_end())
    assert "epoch 1/2 · step 30/100" in log and "epoch 2/2 · step 60/100" in log, "epochs are counted as by the bar"
    assert _is_plain(in_pipe(_with_end(), FORCE_COLOR="1", TERM="dumb"))
    dumb, service = in_terminal(_with_end(), TERM="dumb")[0], in_terminal(_with_end(), CI="true")[0]
    assert _is_plain(dumb.decode())
    assert b"\x1b[2K" not in service and service.count(b"samples/s") == 3
    assert not _is_plain(in_terminal(_with_end())[0].decode()), "control: a terminal"


def test_an_ascii_stream_and_a_closed_pipe_do_not_end_the_process():
    assert "epoch 1 \\xb7 val loss 0.01 \\u2190 best" in in_pipe(_with_end(), PYTHONIOENCODING="ascii")
    code = _with_end('os.write(2, b"half\\n"); sys.stdin.read()') + "os.write(2, b'done')"
    process = subprocess.Popen([sys.executable, "-uc", code], stdin=-1, stdout=-1, stderr=-1, env=_environment({}))
    assert process.stderr.readline() == b"half\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b"done" and process.wait() == 0
    process.stderr.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("screen")
    photos = make_photos(folder / "train", 8), make_photos(folder / "val", 2, seed=1)
    return small_config(*photos, folder, data={"batch_size": 2}, train={"epochs": 1})


def _repeated(config: dict) -> list[str]:
    """Return the lines that training printed more than once, on both streams."""
    text = forked.printed(config)
    Path(config["run"]["dir"], f"{config['run']['name']}.log").unlink()
    return [line for line, count in Counter(filter(str.strip, text.splitlines())).items() if count > 1]


def test_only_the_main_process_prints(config):
    assert forked.run(config, "--audit", ranks=2, mode="warn") == [0, 0], forked.printed(config)
    assert forked.printed(config).count("as a library does") == 2, "the warning and its source line"
    assert _repeated(config) == []
    forked.run(config, "--overwrite", ranks=2, mode="warn,without=console")
    repeated = "\n".join(_repeated(config))
    assert "finished: best epoch" in repeated and "as a library does" in repeated, "control"


def test_a_result_worse_than_its_input_is_reported(tmp_path):
    def lines_for(psnr, step):
        lines = []
        best = {"epoch": 0, "loss": 0.1, "psnr": psnr, "input_psnr": 20.0}
        report_result(SimpleNamespace(log=lines.append), tmp_path, SimpleNamespace(best=best, step=step))
        return [line for line in lines if "than the input" in line]

    assert lines_for(20.1, 1000) == lines_for(20.1, 50) == []
    (line,) = lines_for(19.9, 1000)
    assert "worse than the input: train longer, lower optimizer.lr" in line
    (line,) = lines_for(19.9, 50)
    assert "not yet better than the input, as expected of 50 steps" in line and "optimizer.lr" not in line
