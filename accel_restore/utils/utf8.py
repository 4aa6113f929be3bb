"""UTF-8 for file names and text files, in every locale."""

import os
import sys
from pathlib import Path


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale has another encoding; otherwise do nothing.

    A run's draws depend on the names of its images, so a name must be the same text in every locale. Standard output
    keeps the terminal's encoding and escapes characters that it lacks. The process keeps its id.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    try:  # the bytes: in some encodings, `sys.orig_argv` cannot be turned back into them
        arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    except OSError:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    terminal = os.environ.get("PYTHONIOENCODING") or f"{encoding}:backslashreplace"
    program = os.fsencode(sys.executable)
    environment = {**os.environb, b"PYTHONUTF8": b"1", b"PYTHONIOENCODING": terminal.encode()}
    os.execve(program, [program, *arguments], environment)


def printable(text: str) -> str:
    r"""Return the text with `\udcff` in place of a byte, here FF, that is not UTF-8. Names of files may have some."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def problem_of_name(path: Path | str) -> str | None:
    """Return what is wrong with a path that libraries cannot open because it is not text, and the remedy, or None."""
    if str(path).isascii() or printable(str(path)) == str(path):
        return None
    if (encoding := sys.getfilesystemencoding()) == "utf-8":
        return "its name is not valid UTF-8; rename it"
    return f"its name cannot be read in the encoding of the locale ({encoding}); set PYTHONUTF8=1"
