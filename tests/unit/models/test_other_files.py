"""A file that was given as weights and is something else is named for what it is, with the remedy."""

import argparse
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from accel_restore.config.model import Model
from accel_restore.errors import UserError
from accel_restore.losses.perceptual import read_tensors
from accel_restore.models import ImageSpec
from accel_restore.models.load_weights import load_module
from accel_restore.models.pretrained import build_or_load_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 66994103\n"
OTHERS = {
    "web page": (b"\n<!DOCTYPE html><html><head><title>Virus scan warning</title>" + b"x" * 5000, "is a web page"),
    "web page without a type": ("<html lang='de'>ä".encode(), "is a web page"),
    "XHTML": (b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC '-//W3C'>", "is a web page"),
    "web page with a byte-order mark": (b"\xef\xbb\xbf<HTML>", "is a web page"),
    "answer in XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a text ('<?xml"),
    "answer in JSON": (b'{"error": "Repository not found"}', "is a text ('{"),
    "index of several files": (json.dumps({"weight_map": {"a": "b"}}, indent=2).encode(), "is a text ('{"),
    "plain answer": ("Entry not found – ä".encode(), "is a text ('Entry not found"),
    "UTF-16": ("Zugriff verweigert".encode("utf-16"), "is a text ('Zugriff verweigert"),
    "Git LFS": (LFS, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "git-annex": (b"/annex/objects/SHA256E-s123--abc.pth\n", "is a git-annex pointer"),
    "git-annex without links": (b"../.git/annex/objects/ab/SHA256E-s1--a.pth/x.pth", "is a git-annex pointer"),
    "nothing": (b"", "is empty"),
    "hole": (bytes(5000), "starts with zeros, so"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\x00", "is an ONNX model"),
    "Keras": (b"\x89HDF\r\n\x1a\n\x00", "is an HDF5 file"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    "picture": (b"\x89PNG\r\n\x1a\n\x00", "is a picture (PNG)"),
    "gzip": (gzip.compress(b"weights"), "is compressed with gzip; unpack it"),
    "bytes": (bytes(range(7, 256)) * 9, "is damaged"),
}  # fmt: skip


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, "x" * 99)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("net.pth"), io.BytesIO())
    return stream.getvalue()


class Net(torch.nn.Sequential):
    """A class of another project."""


def saved(content: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def script() -> bytes:
    traced = torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 2, 2))
    stream = io.BytesIO()
    torch.jit.save(traced, stream)
    return stream.getvalue()


ARCHIVES = {
    "zip": (lambda: archive("weights/net.pth", "README.md"), "is a zip archive of 2 files, such as weights/net.pth"),
    "empty zip": (archive, "is a zip archive of 0 files;"),
    "npz": (lambda: archive("a.npy", "b.npy"), "is an archive of NumPy arrays"),
    "torch.export": (lambda: archive("m/archive_format", "m/models/model.json"), "is a program of torch.export"),
    "tar": (tarred, "is a tar archive; unpack it"),
    "TorchScript": (script, "is a TorchScript archive"),
    "whole module": (lambda: saved(Net(torch.nn.ReLU())), "holds a whole model, pickled with its classes (test_"),
    "other objects": (
        lambda: saved({"a": argparse.Namespace()}), "holds objects other than tensors (argparse.Namespace)"
    ),
    "old whole module": (
        lambda: saved(Net(torch.nn.ReLU()), _use_new_zipfile_serialization=False), "holds objects other than tensors"
    ),
}  # fmt: skip
CASES = {**{name: (lambda data=data: data, said) for name, (data, said) in OTHERS.items()}, **ARCHIVES}


def problems(file: Path) -> list[str]:
    """Return what each reader of weights says about a file."""
    found = []
    for read in (
        lambda: build_or_load_model(Model(name="unet", checkpoint=str(file)), ImageSpec.of(3)),
        lambda: read_tensors(str(file), {"a": torch.Size([1])}, "validation.weights.lpips", "a file"),
        lambda: load_module(file),
    ):
        with pytest.raises(UserError) as caught:
            read()
        found.append(str(caught.value))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("make", "said"), CASES.values(), ids=CASES)
def test_another_file_is_named_for_what_it_is(make, said, suffix, tmp_path):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(make())
    if "holds" in said and suffix == ".safetensors":
        said = "was written by torch.save and not as safetensors; rename it to .pth"
    by_checkpoint, by_metric, by_command = problems(file)
    assert said in by_checkpoint and by_checkpoint.startswith(f"model.checkpoint: {file}: ")
    assert said in by_metric and by_metric.startswith(f"validation.weights.lpips: {file} ")
    assert (
        said in by_command or "torch.save" in said or "holds" in said or said == "is damaged"
    )  # a command takes safetensors alone
    assert not any("\n" in text or len(text) > 600 for text in (by_checkpoint, by_metric, by_command))


def test_a_link_whose_target_is_missing_is_named_with_its_target(tmp_path):
    file = tmp_path / "weights.pth"
    file.symlink_to("../.git/annex/objects/ab/x.pth")
    said = problems(file)[0]
    assert "is a link to ../.git/annex/objects/ab/x.pth, which does not exist; run `git annex get`" in said


def test_the_files_that_are_read_are_taken_for_nothing_else(tmp_path):
    for name, options in (("new.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        (tmp_path / name).write_bytes(saved({"a": torch.ones(1)}, **options))
        assert read_tensors(str(tmp_path / name), {"a": torch.Size([1])}, "key", "a file")["a"] == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: saved({"a": torch.ones(1)}), "was written by torch.save, which does not store how to build the model"),
        (lambda: saved({"a": 1}, _use_new_zipfile_serialization=False), "was written by torch.save, which does not"),
        (lambda: pickle.dumps({"a": 1}), "is a pickle, which may execute code and is not read"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_command_that_takes_safetensors_names_the_other_formats_of_weights(make, said, suffix, tmp_path):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(make())
    with pytest.raises(UserError) as caught:
        load_module(file)
    assert str(caught.value).startswith(said) and "give the best.safetensors of a run" in str(caught.value)


def test_another_file_of_a_run_is_answered_with_its_best_weights(tmp_path):
    for name, said in (("config.yaml", "is a configuration; give "), ("config.yml", "is a configuration; give ")):
        file = tmp_path / name
        file.write_text("a: 1\n")
        with pytest.raises(UserError, match=said) as caught:
            load_module(file)
        assert "the best.safetensors of its run" in str(caught.value)
        (tmp_path / "best.safetensors").touch()
        with pytest.raises(UserError, match=f"{said}{tmp_path / 'best.safetensors'}"):
            load_module(file)
        (tmp_path / "best.safetensors").unlink()
