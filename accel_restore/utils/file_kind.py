"""Recognise files that are no weights: a web page, a Git LFS pointer, an archive, another format."""

import re
import zipfile
from contextlib import suppress
from pathlib import Path

_LOOK = 1024  # bytes at the start of a file
_UNPACK = "unpack it and give the file of weights in it"
_OTHER_FORMAT = "which is not supported; give the .safetensors or .pth file that its project publishes"

# The first bytes of formats, and what to say about them.
_STARTS = {
    b"\x1f\x8b": f"is compressed with gzip; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is compressed with Zstandard; {_UNPACK}",
    b"\xfd7zXZ\x00": f"is compressed with xz; {_UNPACK}",
    b"BZh": f"is compressed with bzip2; {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7-Zip archive; {_UNPACK}",
    b"Rar!": f"is a RAR archive; {_UNPACK}",
    b"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes, {_OTHER_FORMAT}",
    b"GGUF": f"is a GGUF file, {_OTHER_FORMAT}",
    b"\x93NUMPY": f"is a NumPy array, {_OTHER_FORMAT}",
    b"MATLAB 5.0": f"is a MATLAB file, {_OTHER_FORMAT}",
    b"\x89PNG": "is a picture (PNG); give a file of weights",
    b"\xff\xd8\xff": "is a picture (JPEG); give a file of weights",
    b"GIF8": "is a picture (GIF); give a file of weights",
    b"%PDF": "is a PDF document; give a file of weights",
    b"\x7fELF": "is a program; give a file of weights",
    b"MZ": "is a program; give a file of weights",
}
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12|\x1a|\x22|\x28|\x3a|\x42)")  # ModelProto: ir_version, then another field
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save wrote before version 1.6
_ANNEX = re.compile(r"\S*/annex/objects/\S+\s*")
_PAGE = re.compile(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def describe_other_file(path: Path) -> str | None:
    """Return what a file is and what to do, as in "is a web page; ...", or None if it may be a file of weights."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOK)
        if not start:
            return "is empty; copy or download it again"
        if start.startswith(b"PK") and zipfile.is_zipfile(path):
            return _describe_archive(path)
    except (OSError, ValueError):
        return None
    if not any(start):
        return "starts with zeros, so its download or copy is incomplete; copy or download it again"
    if start[257:262] == b"ustar":
        return f"is a tar archive; {_UNPACK}"
    for first, what in _STARTS.items():
        if start.startswith(first):
            return what
    if _ONNX.match(start):
        return f"is an ONNX model, {_OTHER_FORMAT}"
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model, {_OTHER_FORMAT}"
    return _describe_text(start, path)


def _describe_archive(path: Path) -> str | None:
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inside = {name.partition("/")[2] for name in names}
        if {"constants.pkl", "data.pkl"} <= inside:
            return (
                "is a TorchScript archive, a compiled program, which is not executed; load it with torch.jit.load in "
                "its own project and save model.state_dict()"
            )
        if any(name.rpartition("/")[2] in ("serialized_exported_program.json", "archive_format") for name in names):
            return f"is a program of torch.export, {_OTHER_FORMAT}"
        if "data.pkl" in inside or any(name.endswith("data.pkl") for name in names):
            return None  # of torch.save
        if names and all(name.endswith(".npy") for name in names):
            return f"is an archive of NumPy arrays, {_OTHER_FORMAT}"
        first = f", such as {names[0]:.80}" if names else ""
        return f"is a zip archive of {len(names)} file{'s' * (len(names) != 1)}{first}; {_UNPACK}"
    return None


def describe_torch_file(path: Path) -> str | None:
    """Return a message for a file of torch.save or pickle, where only safetensors can be used."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_TORCH_LEGACY))
    except OSError:
        return None
    if start.startswith(b"PK\x03\x04") or start == _TORCH_LEGACY:
        return (
            "was written by torch.save, which does not store how to build the model; give the best.safetensors of a "
            "run, or train from this file with model.checkpoint"
        )
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle, which may execute code and is not read; give the best.safetensors of a run"
    return None


def _describe_text(start: bytes, path: Path) -> str | None:
    """Return what a text is, quoting its first line; None if the bytes are no text."""
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = start.decode(encoding, errors="ignore").lstrip()
    if len(text.encode(encoding)) < 0.9 * len(start.strip()) or not " ".join(text.split()).isprintable():
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    if _ANNEX.fullmatch(text):
        return "is a git-annex pointer, not the file itself; run `git annex get` in its repository"
    if _PAGE.match(text):
        return "is a web page, not the file that its link offers; download the file itself"
    line = text.splitlines()[0] if text else ""
    best = path.with_name("best.safetensors")
    of_run = f"give {best}" if best != path and best.is_file() else None
    if path.suffix.lower() in (".yaml", ".yml"):
        return f"is a configuration; {of_run or 'give the best.safetensors of its run'}"
    return f"is a text ('{line:.60}'), not the file itself; {of_run or 'download it again'}"
