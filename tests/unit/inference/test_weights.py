"""Files of weights: what `load` refuses, and how it names it."""

import json
import os
import re
import subprocess
import sys

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from weight_files import build, write

import accel_restore
from accel_restore.checkpoint.state_dict import serialize
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.models import build_model
from accel_restore.registry import MODELS


def test_a_flipped_bit_is_refused(tmp_path):
    file = write(tmp_path / "best.safetensors", build(3))
    data = file.read_bytes()
    file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    safetensors.torch.load_file(file)  # the control: the library notices nothing
    with pytest.raises(UserError, match=r"best\.safetensors: is damaged"):
        restorer.load(file)


@pytest.mark.parametrize("size", [0, 20, -50])
def test_a_truncated_file_is_reported_with_a_remedy(tmp_path, size):
    file = tmp_path / "best.safetensors"
    file.write_bytes(write(tmp_path / "whole.safetensors", build(3)).read_bytes()[:size])
    with pytest.raises(UserError, match=r"best\.safetensors: .*copy or download it again"):
        restorer.load(file)


def test_a_run_without_a_validation_is_reported_as_such(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="does not exist yet; its run has not completed a validation"):
        accel_restore.load(tmp_path / "best.safetensors")


def test_an_unreachable_hub_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^me/denoiser: does not exist here, .*Hub \(HF_HUB_OFFLINE is set") as offline:
        accel_restore.load("me/denoiser")
    assert len(str(offline.value).splitlines()) == 1

    def refuse(*_: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"^me/denoiser: does not exist here, .*Hub \(no route\)$"):
        accel_restore.load("me/denoiser")


def test_files_without_our_weights_are_refused_by_name(tmp_path):
    whole = write(tmp_path / "whole.safetensors", build(3)).read_bytes()
    content = {
        "truncated": whole[:-50], "header": whole[:20], "empty": b"", "text": b"no weights " * 20,
        "foreign": safetensors.torch.save({"a": torch.zeros(2)}),
        "other": safetensors.torch.save({"a": torch.zeros(2)}, {"format": "pt", "model": "llama", "data": "{}"}),
    }  # fmt: skip
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    for name in (*content, "missing", "."):
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: "):
            restorer.load(tmp_path / name)


@pytest.mark.parametrize(
    "metadata",
    [
        {"model": None}, {"data": None}, {"model": "{"}, {"model": "[]"}, {"model": '{"name": "unet"}'},
        {"model": '{"name": "unet", "arguments": [1]}'}, {"model": '{"name": "unet", "arguments": null}'},
        {"model": '{"name": ["unet"], "arguments": {}}'}, {"model": '{"name": "unet", "arguments": {"widht": 8}}'},
        {"model": '{"name": "dncnn", "arguments": {}}'}, {"model": '{"name": "no.such.package:Net", "arguments": {}}'},
        {"data": '{"channels": 1}'}, {"data": '{"channels": "3"}'}, {"metrics": "{"},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_that_match_no_model_are_refused(metadata, tmp_path):
    with pytest.raises(UserError):
        restorer.load(write(tmp_path / "best.safetensors", build(3), **metadata))


def test_a_hostile_model_name_is_refused_without_being_called(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(os, "system", lambda *given, **named: called.append(given))
    info = json.dumps({"name": "os:system", "arguments": {"command": "touch hostile"}})
    with pytest.raises(UserError, match="os:system"):
        restorer.load(write(tmp_path / "best.safetensors", build(3), model=info))
    with pytest.raises(UserError, match="os:system"):
        build_model("os:system", {"command": "touch hostile"}, 3)
    assert not called


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("unet", {"widht": 8}, r"model\.widht: unknown key; did you mean 'model\.width'"),
        ("unet", {"channels": 1}, r"model\.channels"), ("unet", {"width": "wide"}, "model: unet cannot be built"),
        ("torch.nn:Linear", {}, r"model\.in_features: missing"), ("json:dumps", {}, "not a torch.nn.Module"),
        ("no.such.package:Net", {}, "cannot import"), ("torch.nn:NoNet", {}, "cannot import"),
        (".unet:UNet", {}, "cannot import"), ("torch.nn:Linear", {"in_features": -1, "out_features": 2}, "be built"),
    ],
)  # fmt: skip
def test_an_invalid_model_is_refused_with_its_key(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build_model(name, arguments, 3)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_by_import_path_is_the_same_class(name):
    assert type(build_model(MODELS[name], {"width": 8}, 1)) is type(build_model(name, {"width": 8}, 1))
    assert isinstance(build_model("torch.nn:Identity", {}, 3), torch.nn.Identity)  # one that has no `channels`


def test_equal_content_gives_equal_bytes_in_every_process():
    tensors = {f"t{i}": torch.full((i + 1,), float(i)) for i in range(9)}
    metadata = {f"key{i}": str(i) for i in range(9)}
    ours = serialize(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    code = (
        "import sys, torch; from accel_restore.checkpoint.state_dict import serialize\n"
        "tensors = {f't{i}': torch.full((i + 1,), float(i)) for i in range(9)}\n"
        "sys.stdout.buffer.write(serialize(tensors, {f'key{i}': str(i) for i in range(9)}))"
    )
    other = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True)
    assert other.stdout == ours
    assert len({safetensors.torch.save(tensors, metadata) for _ in range(9)}) > 1  # the control: the library's order
    assert all(value.equal(tensors[name]) for name, value in safetensors.torch.load(ours).items())


def test_the_message_for_missing_weights_names_the_copy_in_the_newest_commit(tmp_path):
    names = ("step-9", "step-10", ".staging-step-11")
    copies = [tmp_path / "checkpoints" / name / "best.safetensors" for name in names]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        copy.touch()
    with pytest.raises(UserError, match=rf"does not exist; its run has a copy, {re.escape(str(copies[1]))}$"):
        accel_restore.load(tmp_path / "best.safetensors")
