"""Commands, and training before step 1, import no library before it is needed."""

import subprocess
import sys

import forked
import pytest
import yaml
from runs import ROOT, clean_environment, launch, make_photos, run_folder, small_config
from torch import nn

LIGHT = """
import sys
from accel_restore import cli
try:
    code = cli.main(sys.argv[1:])
except SystemExit as ended:  # of --help
    code = ended.code
print("MODULES", *sys.modules)
sys.exit(code)
"""
TRAINING = """
import sys
from accel_restore import engine, train
from accel_restore.state import Callback
begin = engine.train_epoch
class Look(Callback):
    def on_step(self, state):
        if state.step == 1:
            print("MODULES", *sys.modules)
engine.train_epoch = lambda state, steps, loss, accelerator, hooks, norm: begin(
    state, steps, loss, accelerator, [Look(), *hooks], norm
)
code = train.main(sys.argv[1:])
print("MODULES", *sys.modules)
sys.exit(code)
"""
NEEDED_LATER = {"wandb", "pandas", "matplotlib"}  # by W&B and the first plot
COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torch.distributed.tensor", "sympy"}
LIBRARIES = {"datasets", "torchvision", "spandrel", "tensorboard", "imagecodecs", "tifffile", "rawpy", "onnx"}
NOT_NEEDED = {"skimage", "scipy", *COMPILER, *LIBRARIES}


def _modules(code: str, *arguments: str) -> list[set[str]]:
    """Return the names of the modules that a process had imported, at each of its marks."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    return [set(line.split()[1:]) for line in process.stdout.splitlines() if line.startswith("MODULES")]


HEAVY = {"torch", "numpy", "PIL", "accelerate", "rich", *NEEDED_LATER, *NOT_NEEDED}


@pytest.mark.parametrize(
    ("arguments", "needed", "not_needed"),
    [
        (["--help"], {"argparse"}, {"pydantic", "yaml", *HEAVY}),
        (["train", "--help"], {"pydantic"}, HEAVY),
        (["config"], {"pydantic"}, HEAVY),
    ],
)
def test_help_and_the_configuration_are_printed_without_heavy_libraries(arguments, needed, not_needed):
    (modules,) = _modules(LIGHT, *arguments)
    assert needed <= modules and not modules & not_needed


def test_the_check_of_data_imports_only_what_it_needs(tmp_path):
    photos = make_photos(tmp_path / "train", 4), make_photos(tmp_path / "val", 1, seed=1)
    file = tmp_path / "check.yaml"
    file.write_text(yaml.safe_dump(small_config(*photos, tmp_path)))
    (modules,) = _modules(LIGHT, "check", "--config", str(file))
    needed = {"torch", "scipy", "imagecodecs", "pandas"}  # pyarrow imports pandas for decoded images
    assert needed <= modules and not modules & ({*NEEDED_LATER, *NOT_NEEDED} - needed)


def test_training_on_decoded_images_imports_only_what_it_needs_before_step_1(tmp_path):
    photos = make_photos(tmp_path / "train", 4), make_photos(tmp_path / "val", 1, seed=1)
    tracking = {"wandb": "offline", "log_every_steps": 1}
    config = small_config(*photos, tmp_path, train={"epochs": 1}, tracking=tracking)
    assert forked.run(config) == [0], forked.printed(config)  # decodes the images
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(config))
    first, last = _modules(TRAINING, "--config", str(file), "--cpu", "--overwrite")
    assert {"torch", "pyarrow"} <= first and not first & (NOT_NEEDED | NEEDED_LATER)
    assert last >= NEEDED_LATER


class Own(nn.Module):
    """A convolution that, outside training, accepts only widths that are a multiple of a number."""

    def __init__(self, multiple: int, channels: int = 3):
        super().__init__()
        self.conv, self.multiple = nn.Conv2d(channels, channels, 3, padding=1), multiple

    def forward(self, x):
        assert self.training or x.shape[-1] % self.multiple == 0
        return self.conv(x)


def test_nothing_is_written_for_a_model_that_cannot_be_used(tmp_path):
    photos, val = make_photos(tmp_path / "train", 8), make_photos(tmp_path / "val", 2, seed=1)
    config = small_config(photos, val, tmp_path / "out")
    config["model"] = {"name": "test_startup:Own", "multiple": 64}
    process = forked.launch(config)
    assert process.returncode == 2 and "cannot restore validation images of" in process.stdout + process.stderr
    assert not run_folder(config).exists()
    config["model"]["multiple"] = 1
    assert forked.launch(config).returncode == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"PATH": "/nowhere", "CXX": "/nowhere/g++"},
            "train.compile: torch cannot compile for cpu (InvalidCxxCompiler",
        ),
        ({"TORCHINDUCTOR_CACHE_DIR": "{file}/cache"}, "TORCHINDUCTOR_CACHE_DIR: torch cannot create {file}/cache ("),
    ],
)
def test_nothing_is_written_where_torch_cannot_compile(tmp_path, setting, said):
    photos = make_photos(tmp_path / "train", 2), make_photos(tmp_path / "val", 1, seed=1)
    config = small_config(*photos, tmp_path / "out", train={"epochs": 1, "compile": True})
    (tmp_path / "file").touch()
    fresh = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "fresh")}
    env = {**fresh, **{name: value.format(file=tmp_path / "file") for name, value in setting.items()}}
    process = launch(config, env=env)
    assert process.returncode == 2, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("accel-restore: ")]
    assert said.format(file=tmp_path / "file") in line
    assert "Traceback" not in process.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.yaml"]
