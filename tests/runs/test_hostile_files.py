"""Hostile files: decompression bombs, weights with false headers, models too large to build."""

import io
import json
import os
import pickle
import re
import zlib
from contextlib import nullcontext

import forked
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from process_memory import memory
from runs import make_photos, run_folder, small_config
from weight_files import build, write

from accel_restore.checkpoint.commits import find_commits, read_commit, write_commit
from accel_restore.data.decode import read_header, read_image
from accel_restore.data.image_formats import ImageError
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.models import build_model, load_weights


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width, height, pixels, *more):
    """Return an 8-bit gray PNG whose header has this size and whose pixels decompress to these bytes."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    packed = zlib.compressobj(1)
    data = packed.compress(pixels) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile_image(kind):
    if kind == "bomb":
        return png(10_000, 9_000, bytes(9_000 * 10_001))
    if kind == "huge header":
        return png(2**31 - 1, 2**31 - 1, b"")
    if kind == "taller than it is":
        return png(9_000, 9_000, bytes(20))
    if kind == "text":
        return png(4, 4, bytes(20), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28))))
    if kind == "profile":
        return png(4, 4, bytes(20), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28))))
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((16, 16, 3), np.uint16), photometric="rgb", tile=(16, 16))
    data = bytearray(file.getvalue())
    for tag, claimed in {"tile": {322: 2**20, 323: 2**20}, "size": {256: 2**15, 257: 2**15}}[kind].items():
        place = data.index(entry := tag.to_bytes(2, "little") + b"\4\0\1\0\0\0")  # one 32-bit number
        data[place : place + 12] = entry + claimed.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["bomb", "huge header", "taller than it is", "text", "profile", "tile", "size"])
def test_a_small_hostile_image_takes_little_memory(kind, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(hostile_image(kind))
    assert path.stat().st_size < 2**20
    with memory(80), pytest.raises(ImageError, match=r"^[^\n]+$"):
        read_image(path, 3, "uint16")


def test_control_pillow_takes_over_100_times_the_size_of_a_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(hostile_image("bomb"))
    assert read_header(path, max_pixels=10**9).width == 10_000  # the user may raise the limit
    with pytest.raises(AssertionError, match="< 70"), memory(70):
        read_image(path, 1, max_pixels=10**9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(path) as image:
        assert np.asarray(image).nbytes > 100 * path.stat().st_size


LIES = {
    "longer than the file": lambda h, b: pack(h, b, length=2**20),
    "without end": lambda h, b: pack(h, b, length=2**63 - 1),
    "no length": lambda h, b: pack(h, b, length=0),
    "no JSON": lambda h, b: pack(b"{" * 64, b),
    "a list": lambda h, b: pack(b"[]", b),
    "no UTF-8": lambda h, b: pack(json.dumps(h).encode().replace(b'"unet\\"', b'"un\xff\\"'), b),
    "deep": lambda h, b: pack(b'{"a":' * 100_000, b),
    "beyond the file": lambda h, b: pack(changed(h, data_offsets=[0, 2**40]), b),
    "negative": lambda h, b: pack(changed(h, data_offsets=[-4, 4]), b),
    "backwards": lambda h, b: pack(changed(h, data_offsets=h[first(h)]["data_offsets"][::-1]), b),
    "overlapping": lambda h, b: pack(changed(h, data_offsets=list(h.values())[2]["data_offsets"]), b),
    "a hole": lambda h, b: pack(h, b + bytes(64)),
    "unknown type": lambda h, b: pack(changed(h, dtype="F7"), b),
    "another type": lambda h, b: pack(changed(h, dtype="I32"), b),
    "another shape": lambda h, b: pack(changed(h, shape=h[first(h)]["shape"][::-1]), b),
    "overflowing shape": lambda h, b: pack(changed(h, shape=[2**62, 2**62]), b),
    "negative shape": lambda h, b: pack(changed(h, shape=[-1]), b),
    "another name": lambda h, b: pack({name + "_": entry for name, entry in h.items() if name != "__metadata__"}, b),
    "a name twice": lambda h, b: pack(json.dumps(h).encode()[:-1] + b', "%s": {"dtype":"F32","shape":[0],'
                                      b'"data_offsets":[0,0]}}' % first(h).encode(), b),
    "metadata of numbers": lambda h, b: pack({**h, "__metadata__": {"model": 1}}, b),
}  # fmt: skip


def pack(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def first(header):
    return next(name for name in header if name != "__metadata__" and len(header[name]["shape"]) > 1)


def changed(header, **fields):
    return {**header, first(header): {**header[first(header)], **fields}}


def unpack(data):
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


@pytest.mark.parametrize("lie", LIES)
def test_weights_with_a_false_header_are_rejected(lie, tmp_path):
    path = write(tmp_path / "weights.safetensors", build(3))
    restorer.load(path)
    path.write_bytes(LIES[lie](*unpack(path.read_bytes())))
    with memory(70), pytest.raises(UserError, match=rf"^{path}: [^\n]+$"):
        restorer.load(path)


ABSURD = {
    "width": ("unet", {"width": 2**40}),
    "some width": ("unet", {"width": 2**13}),
    "levels": ("unet", {"multipliers": [1] * 5000}),
    "depth": ("dncnn", {"depth": 10**9}),
    "torch's own": ("torch.nn:Linear", {"in_features": 2**40, "out_features": 9}),
    "Python's own": ("antigravity:Net", {}),
    "function": ("os:system", {"command": "true"}),
    "no name": ("a\nb:Net", {}),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_weights_of_an_oversized_model_are_rejected_without_taking_memory(kind, tmp_path):
    name, arguments = ABSURD[kind]
    path = write(tmp_path / "weights.safetensors", build(3), model=json.dumps({"name": name, "arguments": arguments}))
    with memory(300), pytest.raises(UserError, match=rf"^{path}: "):
        restorer.load(path)


def test_an_oversized_model_is_rejected_before_it_takes_memory(tmp_path, monkeypatch):
    info = json.dumps({"name": "dncnn", "arguments": {"width": 60000}})
    path = write(tmp_path / "weights.safetensors", build(3), model=info)
    built = []
    noted = lambda *given: built.append(torch.get_default_device()) or build_model(*given)  # noqa: E731
    monkeypatch.setattr(load_weights, "build_model", noted)
    with pytest.raises(UserError, match="much larger than the weights"):
        restorer.load(path)
    assert [device.type for device in built] == ["meta"]


def test_a_huge_sparse_file_is_rejected_before_it_is_read(tmp_path):
    path = write(tmp_path / "weights.safetensors", build(3))
    header, body = unpack(path.read_bytes())
    size = 2**36  # bytes; a sparse file takes no disk space
    more = {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(body), len(body) + size]}
    header = {**header, "more": more}
    path.write_bytes(pack(header, body))
    os.truncate(path, path.stat().st_size + size)
    with memory(70), pytest.raises(UserError, match=r"do not fit the model|cannot be read as safetensors"):
        restorer.load(path)


def test_control_without_the_limit_an_oversized_model_is_built(tmp_path, monkeypatch):
    info = json.dumps({"name": "dncnn", "arguments": {"depth": 3000}})
    path, parts = write(tmp_path / "weights.safetensors", build(3), model=info), []
    register = torch.nn.modules.module.register_module_module_registration_hook
    callback = register(lambda *_: parts.append(1))
    with pytest.raises(UserError, match="much larger than the weights"):
        restorer.load(path)
    limited = len(parts)
    monkeypatch.setattr(load_weights, "limited", lambda header: nullcontext())
    with pytest.raises(UserError, match="do not fit"):
        restorer.load(path)
    callback.remove()
    assert len(parts) - limited > 2 * limited


HOSTILE_STATES = {
    "endless schedule": ({"epoch": 10**12, "epochs": 10**13}, "epochs: Input should be less"),
    "long schedule": ({"epoch": 10**9, "epochs": 10**10}, "train.epochs: 2, but .* has completed 1000000000"),
    "finished": ({"epoch": 2}, "has completed all its epochs; raise train.epochs or train.max_steps"),
    "huge batch": ({"global_batches": [10**12]}, "global_batches"),
    "stages": ({"global_batches": [4, 4]}, "another number of stages"),
    "place of W&B's run": ({"wandb_id": "../../../evil"}, "wandb_id"),
    "no numbers": ({"step": "1"}, "step"),
    "sums": ({"sums": [[[1.0]]]}, "does not fit this run"),
    "groups": ({"param_groups": [1]}, "param_groups.0"),
}
HOSTILE_TENSORS = {
    "pickle": lambda data: pickle.dumps({"weight": 1}),
    "another shape": lambda data: LIES["another shape"](*unpack(data)),
    "beyond the file": lambda data: LIES["beyond the file"](*unpack(data)),
    "nothing": lambda data: pack({}, b""),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The configuration of a run that was stopped after one step."""
    root = tmp_path_factory.mktemp("stopped")
    photos = make_photos(root / "photos", 8)
    config = small_config(photos, photos, root, data={"batch_size": 4}, validation={"num_samples": 0})
    assert forked.run(config, "--stop-after", "1") == [143]
    return config


@pytest.mark.parametrize("kind", [*HOSTILE_STATES, *HOSTILE_TENSORS])
def test_a_hostile_commit_is_rejected(stopped, kind, tmp_path):
    """A run may start from any commit. The sha256 sums detect damage, not forgery."""
    (sound,) = find_commits(run_folder(stopped) / "checkpoints")
    files = read_commit(sound)
    if kind in HOSTILE_STATES:
        change, reason = HOSTILE_STATES[kind]
        files["state.json"] = json.dumps({**json.loads(files["state.json"]), **change}).encode()
    else:
        name = "optimizer.safetensors" if kind == "another shape" else "model.safetensors"
        reason = "does not fit this run"
        files[name] = HOSTILE_TENSORS[kind](files[name])
    hostile = write_commit(tmp_path, 1, 0, files)
    config = {**stopped, "run": {**stopped["run"], "name": "mine", "dir": str(tmp_path), "resume": str(hostile)}}
    assert forked.run(config) == [2]
    said = " ".join(forked.printed(config).split())
    assert re.search(reason, said) and "Traceback" not in said
    assert not (run_folder(config) / "status.json").exists()  # nothing is written


def test_control_a_sound_commit_is_accepted(stopped, tmp_path):
    (sound,) = find_commits(run_folder(stopped) / "checkpoints")
    config = {**stopped, "run": {**stopped["run"], "name": "mine", "dir": str(tmp_path), "resume": str(sound)}}
    assert forked.run(config) == [0]
