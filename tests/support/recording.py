"""A file layer that records what a program does to a folder, and derives what any crash may leave of it."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

# States of a disk after a crash. Killed: only the process died, so all its operations are done. Lazy: only what was
# fsynced is on the disk. Removals first: like lazy, but all removals are on the disk. Names first: all names are on
# the disk, but the contents of files only if they were fsynced.
CRASHES = ("killed", "lazy", "removals first", "names first")


class Node:
    """A file or folder, as programs see it and as it is on the disk."""

    def __init__(self, is_folder: bool):
        self.is_folder = is_folder
        self.entries: dict[str, Node] = {}
        self.synced: dict[str, Node] = {}
        self.content, self.synced_content = b"", b""


class Recorder:
    """Records the operations on files below `root`, in order, as (operation, path below root, argument)."""

    def __init__(self, root: Path):
        self.root, self.operations = root, []

    def note(self, operation: str, path: object, argument: object = None, dir_fd: int | None = None) -> None:
        path = Path(os.fspath(path))
        if dir_fd is not None:
            path = _opened(dir_fd) / path
        if path.is_relative_to(self.root):
            self.operations.append((operation, str(path.relative_to(self.root)), argument))

    def acknowledge(self, value: object) -> None:
        """Record that `value` must not be lost from here on."""
        self.operations.append(("acknowledge", "", value))

    def brief(self) -> list[str]:
        """Return the operations in words, without writes."""
        return [f"{what} {path}" for what, path, _ in self.operations if what not in ("write", "acknowledge")]

    @contextlib.contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Record the operations within the block; they are also carried out."""
        real = {name: getattr(os, name) for name in ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir")}
        real_open = io.open

        def fsync(descriptor):
            self.note("fsync", _opened(descriptor))
            real["fsync"](descriptor)

        def mkdir(path, *arguments, **named):
            real["mkdir"](path, *arguments, **named)
            self.note("mkdir", path)

        def rename(path, target, **named):
            real["rename"](path, target, **named)
            self.note("rename", path, str(Path(target).relative_to(self.root)))

        def unlink(path, *, dir_fd=None):
            real["unlink"](path, dir_fd=dir_fd)
            self.note("unlink", path, dir_fd=dir_fd)

        def rmdir(path, *, dir_fd=None):
            real["rmdir"](path, dir_fd=dir_fd)
            self.note("rmdir", path, dir_fd=dir_fd)

        def open_file(path, mode="r", *arguments, **named):
            file = real_open(path, mode, *arguments, **named)
            if not mode.startswith("w"):
                return file
            self.note("create", path)
            return _Written(file, lambda data: self.note("write", path, data))

        patched = {"fsync": fsync, "mkdir": mkdir, "rename": rename, "replace": rename}
        patched |= {"unlink": unlink, "rmdir": rmdir}
        try:
            for name, function in patched.items():
                setattr(os, name, function)
            io.open = open_file
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            io.open = real_open

    def crashes(self) -> Iterator[tuple[str, list[object], Node]]:
        """Yield, after every operation and for each of `CRASHES`: the place, the acknowledged values, the disk."""
        for count in range(len(self.operations) + 1):
            done = self.operations[:count]
            told = [argument for what, _, argument in done if what == "acknowledge"]
            where = f"after {count} operations, the last: {done[-1][:2] if done else 'none'}"
            for crash in CRASHES:
                yield f"{crash}, {where}", told, _disk(done, crash)


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class _Written:
    """A file that reports its writes in two halves, because a crash may come between them."""

    def __init__(self, file, tell):
        self.file, self.tell = file, tell

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        half = len(data) // 2
        self.tell(bytes(data[:half]))
        self.tell(bytes(data[half:]))
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


def _disk(operations: list[tuple], crash: str) -> Node:
    """Return the folder after a crash that follows these operations."""
    root = Node(True)

    def find(path: str) -> Node:
        node = root
        for part in Path(path).parts:
            node = node.entries[part]
        return node

    for what, path, argument in operations:
        if what == "acknowledge":
            continue
        name, parent = Path(path).name, find(str(Path(path).parent)) if path != "." else root
        if what == "mkdir":
            parent.entries[name] = Node(True)
        elif what == "create":
            node = parent.entries.setdefault(name, Node(False))
            node.content = b""
        elif what == "write":
            parent.entries[name].content += argument
        elif what == "fsync":
            node = find(path)
            node.synced, node.synced_content = dict(node.entries), node.content
        elif what == "rename":
            find(str(Path(argument).parent)).entries[Path(argument).name] = parent.entries.pop(name)
        else:
            removed = parent.entries.pop(name)
            if crash == "removals first" and parent.synced.get(name) is removed:
                del parent.synced[name]
    if crash != "killed":
        _settle(root, names=crash == "names first")
    return root


def _settle(node: Node, names: bool) -> None:
    """Reduce a node to its state on the disk."""
    node.content = node.synced_content
    if not names:
        node.entries = node.synced
    for child in node.entries.values():
        _settle(child, names)


def build(node: Node, folder: Path) -> None:
    """Create the folder that a crash has left."""
    folder.mkdir()
    for name, child in node.entries.items():
        if child.is_folder:
            build(child, folder / name)
        else:
            (folder / name).write_bytes(child.content)


def contents(node: Node) -> object:
    """Return the names and contents of a folder, for comparison."""
    if not node.is_folder:
        return node.content
    return tuple(sorted((name, child.is_folder, contents(child)) for name, child in node.entries.items()))
