"""Starting again removes the files of a run, but never a file that the new run needs, whatever path leads to it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from accel_restore.checkpoint.folder import RUN_FILES, check_inputs, find_lost, paths_in
from accel_restore.checkpoint.resume import Start, clear, find_resume_point
from accel_restore.config.load import load_config
from accel_restore.errors import UserError

OLD = Path(__file__).parents[2] / "fixtures" / "run_before_rooms"
COMMIT = "runs/old/checkpoints/step-00000006"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return a working directory with the finished part of a run, `runs/old`, and its configuration."""
    shutil.copytree(OLD, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def start(*overrides: str, overwrite: bool = True) -> Start:
    config = load_config("old.yaml", overrides)
    folder = Path(config.run.dir, config.run.name)
    return find_resume_point(folder, config, overwrite, list(overrides), "no")


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("model.checkpoint", "model={checkpoint: runs/old/best.safetensors}"),
        ("model.checkpoint", f"model.checkpoint={COMMIT}/ema.safetensors"),
        ("model.checkpoint", "model.checkpoint=./runs/../runs/old/best.safetensors"),
        ("model.checkpoint", "model.checkpoint=latest.safetensors"),
        ("model.checkpoint", "model.checkpoint=copy/best.safetensors"),
        ("loss.perceptual.weights", "loss={perceptual: {weight: 1, weights: runs/old/hub/vgg19.pth}}"),
        ("loss.mine:loss.files.0", "loss={'mine:loss': {files: [runs/old/hub/vgg19.pth]}}"),
        ("model.file", "model={name: 'mine:Net', file: runs/old/hub/vgg19.pth}"),
        ("validation.weights.lpips", "validation.weights={lpips: runs/old/hub/vgg19.pth}"),
        ("data.train.gt", "data.train={gt: runs/old/samples}"),
        ("data.val.gt.0", "data.val={gt: [runs/old/samples/a.png]}"),
        ("data.train.dataset", "data.train={dataset: runs/old/hub, gt: image}"),
    ],
)
def test_overwrite_refuses_to_remove_what_the_new_run_reads(key, override, work):
    for name in ("hub/vgg19.pth", "samples/a.png"):
        Path("runs/old", name).parent.mkdir()
        Path("runs/old", name).touch()
    Path("latest.safetensors").symlink_to("copy/best.safetensors")
    Path("copy").symlink_to("runs/old")
    before = files()
    with pytest.raises(UserError, match="the new run needs some of them") as caught:
        start(override)
    assert str(caught.value).splitlines()[1].startswith(f"  - {key}: ")
    assert files() == before


@pytest.mark.parametrize("place", [COMMIT, "runs/old", "./runs/../runs/old", "copy", f"copy/../old/../../{COMMIT}"])
def test_a_commit_of_the_run_that_is_removed_is_refused(place, work):
    Path("copy").symlink_to("runs/old")
    before = files()
    with pytest.raises(UserError, match="without --overwrite, the run goes back to it"):
        start(f"run.resume={place}")
    assert files() == before


@pytest.mark.parametrize(
    "override",
    [
        "model.checkpoint=runs/other/best.safetensors", "model.checkpoint=runs/old/mine.safetensors",
        "model.checkpoint=hard.safetensors", "model.checkpoint=loop", f"model.file={'a/' * 3000}x", "model.file=''",
        "tracking.project=runs/old",
    ],
)  # fmt: skip
def test_files_that_stay_may_be_read(override, work):
    shutil.copytree("runs/old", "runs/other")
    shutil.copy("runs/old/best.safetensors", "runs/old/mine.safetensors")
    Path("hard.safetensors").hardlink_to("runs/old/best.safetensors")
    Path("loop").symlink_to("loop")
    clear(Path("runs/old"), start(override))
    assert Path("hard.safetensors").exists() and Path("runs/old/mine.safetensors").exists()
    assert not Path("runs/old/best.safetensors").exists()


def test_links_that_are_removed_count_and_their_targets_stay(work):
    Path("runs/old/samples").symlink_to("/tmp")
    folder = Path("runs/old")
    assert find_lost(folder, [("data", folder / "samples" / "x.png"), ("data", Path("/tmp"))]) == [
        ("data", folder / "samples" / "x.png")
    ]


def test_images_among_the_files_of_the_run_are_found_one_by_one(work):
    Path("runs/old/curves.png").touch()
    Path("runs/old/mine.png").touch()
    with pytest.raises(UserError, match=r"data: runs/old/curves\.png"):
        check_inputs(Path("runs/old"), [("data", Path("runs/old/mine.png")), ("data", Path("runs/old/curves.png"))])
    images = [("data", Path("runs/old/samples", f"{number}.png")) for number in range(2000)]
    Path("runs/old/samples").mkdir()
    with pytest.raises(UserError) as caught:
        check_inputs(Path("runs/old"), images)
    assert str(caught.value).splitlines()[1:] == ["  - data: runs/old/samples/0.png and 1,999 more"]


def test_the_advice_to_overwrite_is_not_given_where_it_would_be_refused(work):
    own = "model={checkpoint: runs/old/best.safetensors}"
    for override, advised in ((own, False), ("optimizer.lr=0.5", True)):
        with pytest.raises(UserError, match="another configuration; restore these keys") as caught:
            start(override, overwrite=False)
        assert ("--overwrite" in str(caught.value)) is advised


def test_overwrite_starts_from_the_commit_that_run_resume_names(work):
    shutil.copytree("runs/old", "runs/other")
    found = start("run.resume=runs/other")
    assert found.commit == Path("runs/other/checkpoints/step-00000006") and found.clears
    clear(Path("runs/old"), found)
    assert sorted(path.name for path in Path("runs/old").iterdir()) == ["config.yaml"]
    for overwrite in (True, False):
        with pytest.raises(UserError, match="nowhere: does not exist"):
            start("run.resume=nowhere", "run.name=new", overwrite=overwrite)


def test_overwrite_alone_starts_from_scratch(work):
    assert start() == start("run.resume=never") == Start(overwrites=True)
    assert not start(overwrite=False).clears


@pytest.mark.parametrize("resume", ["auto", "runs/other"])
@pytest.mark.parametrize("state", ["preempted", "running", "failed", "diverged", "finished"])
@pytest.mark.parametrize("kept", ["best.safetensors", "metrics.jsonl"])
def test_a_result_without_checkpoints_is_never_overwritten(kept, state, resume, work):
    folder = Path("runs/old")
    shutil.copytree(folder, "runs/other")
    shutil.rmtree(folder / "checkpoints")
    (folder / ({"best.safetensors", "metrics.jsonl"} - {kept}).pop()).unlink()
    (folder / "status.json").write_text(json.dumps({"state": state}))
    with pytest.raises(UserError, match=r"choose another run\.name, or start again with --overwrite"):
        start(f"run.resume={resume}", overwrite=False)
    assert start(f"run.resume={resume}").clears


def test_a_run_without_a_result_starts_again_and_one_whose_commit_was_moved_goes_on(work):
    folder = Path("runs/old")
    shutil.move(folder / "checkpoints/step-00000006", folder / "moved")
    assert start("run.resume=runs/old/moved", overwrite=False).commit == folder / "moved"
    (folder / "best.safetensors").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"event": "epoch"' not in line))
    assert "train" in (folder / "metrics.jsonl").read_text()
    for state in ("preempted", "running", "failed"):
        (folder / "status.json").write_text(json.dumps({"state": state}))
        assert start(overwrite=False).commit is None


@pytest.mark.parametrize(
    ("resume", "answer"),
    [
        ("runs/nope", "does not exist; give the folder of a run"),
        ("runs/odl", "does not exist; did you mean runs/old?"),
        ("runs/old/checkpoints", f"holds no checkpoint; give runs/old (its newest checkpoint is {COMMIT})"),
        ("runs/old/best.safetensors", f"holds no checkpoint; give runs/old (its newest checkpoint is {COMMIT})"),
        ("runs/old/checkpoints/step-6", f"does not exist; give runs/old (its newest checkpoint is {COMMIT})"),
        ("runs/old/checkpoints/step-00000007", f"does not exist; give {COMMIT}"),
        ("old.yaml", "holds no checkpoint; give the folder of a run"),
    ],
)
def test_a_path_without_a_checkpoint_is_answered_with_the_nearest_that_has_one(resume, answer, work):
    with pytest.raises(UserError, match=re.escape(f"run.resume: {resume}: {answer}")):
        start(f"run.resume={resume}", "run.name=new")


def test_every_text_of_a_configuration_is_taken_for_a_path(work):
    keys = {key for key, _ in paths_in(load_config("old.yaml", ["loss={'a:b': {deep: [{file: x}]}}"]))}
    assert {"data.train.gt", "data.cache_dir", "run.resume", "loss.a:b.deep.0.file"} <= keys
    assert "run.name" not in keys and "best.safetensors" in RUN_FILES
