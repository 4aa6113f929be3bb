"""An output of NaN or inf is an error, and no file is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from weight_files import write

from accel_restore.cli import main
from accel_restore.errors import UserError
from accel_restore.inference import apply as applying
from accel_restore.inference import restorer
from accel_restore.inference.apply import ModelRunner, Settings
from accel_restore.models import ImageSpec


def restore(*arguments) -> int:
    return main(["restore", *map(str, arguments), "--cpu"])


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Overflows(torch.nn.Module):
    """A network that adds `value` to bright pixels."""

    def __init__(self, channels: int, value: str) -> None:
        super().__init__()
        self.value, self.weight = float(value), torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        output = images * self.weight
        return torch.where(images > 0.5, output + self.value, output)


def overflowing(tmp_path: Path, value: str) -> Path:
    model = json.dumps({"name": "test_restore_nan:Overflows", "arguments": {"value": value}})
    return write(tmp_path / f"{value}.safetensors", Overflows(3, value), model=model)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("inf", []), ("-inf", []), ("nan", ["--tile", "96", "--tile-overlap", "32"]), ("inf", ["--self-ensemble"]),
        ("nan", ["--compare"]),
    ],
)  # fmt: skip
def test_an_output_of_nan_or_inf_is_a_failed_file_and_nothing_is_written(tmp_path, capsys, value, options):
    (tmp_path / "in").mkdir()
    for name, level in (("bright.png", 200), ("dark.png", 60)):
        Image.new("RGB", (130, 110), (level,) * 3).save(tmp_path / "in" / name)
    file = overflowing(tmp_path, value)
    for _ in range(2):  # no mark is left that would count the file as done
        assert restore(file, tmp_path / "in", "-o", tmp_path / "out", *options) == 2
        message = capsys.readouterr().err
        assert "1 of 2 files" in message and "bright.png: the network's output is NaN or inf" in message
        assert "the weights are damaged" in message and files_in(tmp_path / "out") == ["dark.png"]
    loaded, photo = restorer.load(file), np.full((40, 40, 3), 200, np.uint8)
    for image in (photo, Image.fromarray(photo), torch.full((1, 3, 40, 40), 0.8)):
        with pytest.raises(UserError, match="NaN or inf"):
            loaded(image)
    assert loaded(photo // 4).max() == 50  # the control


def test_an_overflow_of_half_precision_names_the_precision():
    cpu = torch.device("cpu")
    for precision, remedy in (("fp16", "--precision bf16 or --precision no"), ("bf16", "--precision no")):
        runner = ModelRunner(lambda images: images * float("inf"), ImageSpec.of(3), cpu)
        with pytest.raises(applying.NonFiniteError, match=remedy):
            runner(torch.ones(1, 3, 20, 20), Settings(precision=precision))
