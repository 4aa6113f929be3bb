"""TensorBoard's files contain the values of metrics.jsonl under W&B's keys, each once, and no secret."""

import forked
import pytest
from made_run import made_run
from runs import json_lines, run_folder, small_config

from accel_restore.tracking import tensorboard_logger
from accel_restore.tracking.rows import PER_RANK
from accel_restore.tracking.tensorboard_logger import TensorBoardLogger

PHOTOS = 8, 2  # training, validation
accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
SECRET = "hf_QmVuY2hNYXJrVG9rZW5Gb3JUZXN0cw"


def configuration(photos, out, name):
    tracking = {"tensorboard": True, "project": SECRET, "log_every_steps": 1}
    data = {"batch_size": 4}
    return small_config(*photos, out, run={"name": name}, data=data, tracking=tracking, checkpoint={"every_steps": 1})


def read(folder):
    """Return the points of every curve and the steps of every picture, including overwritten ones."""
    events = accumulators.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0}, None, False)
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def expected(folder):
    lines = json_lines(folder / "metrics.jsonl")
    memory = {line["step"]: line for line in json_lines(folder / "memory.jsonl")}
    steps = [{**line, **memory[line["step"]]} for line in lines if line["event"] == "train"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    curves = {
        f"train/{key}/rank_0": [(x["step"], pytest.approx(x[key])) for x in steps]
        for key in PER_RANK
        if key in steps[0]
    }
    curves |= {f"train/{key}": curves[f"train/{key}/rank_0"] for key in ("loss", "lr", "grad_norm")}
    for key in ("loss", "psnr", "input_psnr"):
        curves[f"val/{key}"] = [(line["epoch"], pytest.approx(line[f"val_{key}"])) for line in epochs]
    return curves


def test_a_resumed_run_has_every_point_once(photos, tmp_path):
    config = configuration(photos, tmp_path, "broken")
    folder = run_folder(config)
    assert forked.run(config, "--stop-after", "3") == [143], forked.printed(config)
    scalars, _ = read(folder)
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3]
    assert forked.run(config) == [0], forked.printed(config)
    scalars, images = read(folder)
    assert scalars == expected(folder) and len(scalars["train/loss"]) == 4
    assert images == {"val/images": [0, 1]}
    files = [path for path in (folder / "tensorboard").rglob("*") if path.is_file()]
    assert len(files) == 3 and not any(SECRET.encode() in path.read_bytes() for path in files)
    assert any(b"optimizer.lr" in path.read_bytes() for path in files)  # a hyperparameter


@pytest.fixture
def written(tmp_path, one_thread):
    """Return a function that logs a prepared run in this process and returns its folder and the messages."""
    from accelerate import PartialState

    PartialState(cpu=True)
    folder, messages = made_run(tmp_path / "run"), []

    def write():
        logger = TensorBoardLogger(
            folder, {"tracking": {"project": SECRET}, "betas": [0.9], "none": None}, 2, messages.append
        )
        logger.update()
        logger.end()
        logger.finish()
        return folder, messages

    return write


def test_ranks_and_loss_terms_have_their_own_curves(written):
    scalars, images = read(written()[0])
    assert len(scalars["train/loss/rank_1"]) == len(scalars["train/terms/ssim"]) == 60
    assert {"train/lr/rank_1", "val/terms/l1", "val/ssim"} <= set(scalars) and images["val/images"] == [0, 1, 2]


def test_control_without_redaction_the_secret_is_stored(written, monkeypatch):
    monkeypatch.setattr(tensorboard_logger, "redacted", lambda value: value)
    folder, _ = written()
    assert any(SECRET.encode() in path.read_bytes() for path in (folder / "tensorboard").rglob("*events*"))


def test_a_failure_is_logged_and_raises_nothing(written, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard_logger, "_log", full)
    assert written()[1] == [
        "TensorBoard logging stopped (OSError: [Errno 28] No space left on device); training and metrics.jsonl continue"
    ]


def test_a_missing_package_is_an_error_before_anything_is_written(photos, tmp_path):
    config = configuration(photos, tmp_path, "without")
    assert forked.run(config, mode="without=tensorboard") == [2]
    output = forked.printed(config)
    assert "TensorBoard is not installed; pip install 'accel-restore[tensorboard]', or set tracking" in output
    assert "Traceback" not in output and not run_folder(config).exists()
