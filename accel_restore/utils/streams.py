"""Standard output and error that never end a process: missing, closed, full, without a reader, of any encoding."""

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# The reader is gone for good: a pipe such as that of `head`, a terminal, a descriptor.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class SafeStream:
    """A stream for text around another one, which may be None. What cannot be written is dropped."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None  # why text was lost although it has a reader, such as a full disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:
        """The encoding of the text, UTF-8 if the stream has none."""
        try:
            return codecs.lookup(str(getattr(self.stream, "encoding", ""))).name
        except LookupError:
            return "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return bool(self.stream.isatty())
        except (AttributeError, ValueError, OSError):
            return False

    def write(self, text: str) -> int:
        """Write the text; characters that the encoding lacks are escaped."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._attempt("flush")

    def _attempt(self, action: str, *arguments: str) -> None:
        try:
            getattr(self.stream, action)(*arguments)
        except OSError as error:
            if error.errno in _GONE:
                self.discard()
            else:
                self.error = error
        except (AttributeError, ValueError):  # there is no such stream, or it was closed
            pass

    def discard(self) -> None:
        """Drop what is still buffered and all that follows: at its end, Python would fail to write it."""
        with suppress(OSError, AttributeError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            self.stream.flush()


def safe(stream: Any) -> SafeStream:
    """Return the stream as a `SafeStream`."""
    return stream if isinstance(stream, SafeStream) else SafeStream(stream)


@contextmanager
def safe_streams() -> Iterator[SafeStream]:
    """Make standard output and error safe in this block, the main function of a process; yield standard output.

    At the end, standard error reports if standard output could not be written.
    """
    former = sys.stdout, sys.stderr
    if isinstance(sys.stdout, SafeStream):
        yield sys.stdout
        return
    _open_missing()
    output, errors = safe(sys.stdout), safe(sys.stderr)
    sys.stdout, sys.stderr = output, errors  # type: ignore[assignment]
    try:
        yield output
    finally:
        for stream in (output, errors):
            stream.flush()
        if output.error is not None:
            print(
                f"accel-restore: standard output: cannot be written ({output.error.strerror})", file=errors, flush=True
            )
        for stream in (output, errors):
            if stream.error is not None:
                stream.discard()
        sys.stdout, sys.stderr = former


def _open_missing() -> None:
    """Open the null device for standard descriptors that are closed: the next file would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
