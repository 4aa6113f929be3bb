"""No command ends with a traceback because of standard output or error, whatever they are."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import clean_environment

from accel_restore import cli
from accel_restore.tracking.console import Console
from accel_restore.utils.streams import SafeStream, safe_streams

COMMANDS = {
    "cache": ["cache", "list"],
    "config": ["config"],
    "schema": ["config", "--schema"],
    "an error": ["config", "nonsense=1"],
    "report": ["report", "missing"],
    "check": ["check", "nonsense=1"],
    "train": ["train", "nonsense=1"],
}


class Plain:
    """A stream that has only `write` and `flush`, as some programs that embed Python set it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Failing(Plain):
    """A stream that buffers, and cannot write what it holds."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def flush(self):
        if self.text:
            raise OSError(self.number, os.strerror(self.number))


class WriteOnly:
    def write(self, text):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "none": lambda: None,
    "closed": closed,
    "without isatty": Plain,
    "without flush": WriteOnly,
    "without a reader": lambda: Failing(errno.EPIPE),
    "without a terminal": lambda: Failing(errno.EIO),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "an unknown encoding": lambda: type("Odd", (Plain,), {"encoding": "no-such-encoding"})(),
}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_the_same_exit_code_on_every_stream(cache, monkeypatch, command, make):
    expected = cli.main(command)
    output, errors = make(), make()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    assert cli.main(command) == expected
    assert sys.stdout is output and sys.stderr is errors


@pytest.mark.parametrize(("command", "code"), [(["config"], 2), (["cache"], 2), ([], 2), (["config", "nonsense=1"], 2)])
def test_lost_output_of_a_command_is_an_error(cache, monkeypatch, capsys, command, code):
    monkeypatch.setattr(sys, "stdout", Failing(errno.ENOSPC))
    assert cli.main(command) == code
    is_printed = "nonsense=1" not in command
    said = "standard output: cannot be written (No space left on device)"
    assert (said in capsys.readouterr().err) == is_printed


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_the_console_prints_on_every_stream(monkeypatch, make):
    monkeypatch.setattr(sys, "stdout", make())
    console = Console(True)
    console.log("epoch 1 · ← best")
    console.table("scores", [("a", "1 × 2")], ("image", "psnr"))
    assert list(console.track([1, 2], 2, "decoding 2 images")) == [1, 2]
    assert not console.shows_bars


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"\xb7 \u2190 \xd7 \u7167 \xe4 \U0001f600 \ud800"),
        ("latin-1", r"· \u2190 × \u7167 ä \U0001f600 \ud800"),
        ("gbk", r"· ← × 照 \xe4 \U0001f600 \ud800"),
        ("euc_jp", r"\xb7 ← × 照 ä \U0001f600 \ud800"),
        ("utf-8", r"· ← × 照 ä 😀 \ud800"),
    ],
)
def test_characters_that_an_encoding_lacks_are_escaped(encoding, shown):
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("· ← × 照 ä 😀 \ud800")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "euc_jp"])
def test_tables_are_drawn_in_ascii_where_lines_may_lack(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    Console(True).table("scores", [("a", "1")], ("image", "psnr"))
    assert "\\u" not in raw.getvalue().decode(encoding) and "| a " in raw.getvalue().decode(encoding)


def test_streams_are_restored_after_an_error(monkeypatch):
    output = Plain()
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(KeyError), safe_streams():
        print("a line")
        raise KeyError
    assert sys.stdout is output and output.text == "a line\n"


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(
    ("redirection", "code", "lines"),
    [
        pytest.param("> /dev/full", 2, 1, marks=FULL),
        pytest.param("> /dev/full 2> /dev/full", 2, 0, marks=FULL),
        (">&-", 0, 0),
        (">&- 2>&-", 0, 0),
        ("<&- >&- 2>&-", 0, 0),
        ("| head -1 >&2; exit ${PIPESTATUS[0]}", 0, 1),
    ],
)
def test_a_real_process_survives_its_streams(tmp_path, redirection, code, lines):
    command = ["bash", "-c", f'"$0" -m accel_restore.cli config --schema {redirection}', sys.executable]
    env = {**clean_environment(), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (code, lines, "")


def test_a_closed_descriptor_is_not_given_to_the_next_file(tmp_path):
    code = (
        "import os, sys\nfrom accel_restore.utils.streams import safe_streams\n"
        "with safe_streams():\n    file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n    os._exit(file)"
    )
    command = ["sh", "-c", '"$0" -c "$1" "$2" >&-', sys.executable, code, str(tmp_path / "file")]
    env = {**clean_environment(), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    assert subprocess.run(command, env=env).returncode > 2
