"""A file or a folder that may not be accessed is one sentence and exit code 2, in every command."""

import os
from pathlib import Path

import pytest
from image_files import photo, save
from weight_files import build, write

from accel_restore.cli import main
from accel_restore.utils.glob import LeftOut, matches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def closed(tmp_path, monkeypatch) -> Path:
    """A folder that may not be entered, also not by root."""
    folder = tmp_path / "closed"
    folder.mkdir()
    real = {name: getattr(os, name) for name in ("stat", "lstat", "scandir", "listdir")}

    def refusing(name: str):
        def call(path=".", *arguments, **options):
            inside = isinstance(path, str | os.PathLike) and (Path(path) == folder or folder in Path(path).parents)
            if inside and (name in ("scandir", "listdir") or Path(path) != folder):
                raise PermissionError(13, "Permission denied", str(path))
            return real[name](path, *arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "restore {weights} {closed} -o {out} --cpu",
        "restore {weights} {closed}/a.png -o {out} --cpu",
        "restore {closed}/w.safetensors {images} -o {out} --cpu",
        "evaluate {weights} --gt {closed} --degrade quantize --cpu",
        "evaluate {weights} --gt {closed}/a.png --degrade quantize --cpu",
        "evaluate {weights} --run {closed} --cpu",
        "evaluate {closed}/w.safetensors --gt {images} --degrade quantize --cpu",
        "export {closed}/w.safetensors -o {out}.onnx",
        "check data.train.gt={closed}",
        "check data.train.gt={closed}/sub",
        "check data.train.gt={closed}/{{}}.png",
        "check data.train.gt=[{closed}/a.png,{images}/0.png]",
        "check data.train.gt={images} data.cache_dir={closed}/cache",
        "cache --dir {closed}",
        "cache --dir {closed}/sub",
        "train --cpu data.train.gt={images} model.checkpoint={closed}/w.safetensors",
        "train --cpu data.train.gt={images} run.resume={closed}/run",
        "train --cpu data.train.gt={images} run.dir={closed}",
    ],
)
def test_what_may_not_be_accessed_is_named(command, closed, tmp_path, capsys):
    images, weights = tmp_path / "images", write(tmp_path / "w.safetensors", build(3))
    for number in range(3):
        save(images / f"{number}.png", photo(32, 32, number))
    (tmp_path / "c.yaml").write_text(
        f"data: {{train: {{gt: {images}}}, patch_size: 16, cache_dir: {tmp_path}/cache}}\n"
    )
    given = command.format(weights=weights, closed=closed, out=tmp_path / "out", images=images).split()
    if given[0] in ("check", "train"):
        given[1:1] = ["--config", str(tmp_path / "c.yaml")]
    if given[0] == "train" and "run.dir" not in command:
        given.append(f"run.dir={tmp_path}/runs")
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert "ermission denied" in out + err and str(closed) in (out + err).replace("\n", "")


def test_weights_that_may_not_be_read_are_named(tmp_path, capsys, monkeypatch):
    weights = write(tmp_path / "w.safetensors", build(3))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["restore", str(weights), str(save(tmp_path / "a.png")), "-o", str(tmp_path / "out"), "--cpu"]) == 2
    assert f"{weights}: cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_search_goes_on_beside_a_folder_that_may_not_be_read(closed, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.png").touch()
    left_out = LeftOut()
    assert list(matches("**/*", tmp_path, left_out)) == ["open/a.png"] and list(left_out.unreadable) == ["closed"]
