"""What `restore` finds to do, and what it counts as done; names and places that are in the way."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from weight_files import build, write

from accel_restore.cli import main
from accel_restore.commands import restore as command
from accel_restore.errors import UserError
from accel_restore.inference import files as restoring
from accel_restore.inference import jobs as finding
from accel_restore.utils.files import replace_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "best.safetensors", build(3))


def restore(*arguments) -> int:
    return main(["restore", *map(str, arguments), "--cpu"])


def picture(file: Path, level: int = 100, suffix: str = "BMP") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 24, 3), level, np.uint8)).save(file, suffix)
    return file


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_input_of_equal_size_and_time_but_other_content_is_another_input(weights, tmp_path, capsys):
    one, two = (picture(tmp_path / f"scene{level}" / "a.bmp", level) for level in (50, 200))
    for file in (one, two):
        os.utime(file, ns=(10**18, 10**18))
    assert one.stat().st_size == two.stat().st_size
    assert restore(weights, one.parent, "-o", tmp_path / "out") == 0
    first = (tmp_path / "out" / "a.png").read_bytes()
    assert restore(weights, two.parent, "-o", tmp_path / "out") == 2
    assert f"a.png: was not made from {two}" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == first
    # In place: another version of the same file, unpacked over the first.
    shutil.copy2(two, one)
    assert restore(weights, one.parent, "-o", tmp_path / "out") == 2
    assert restore(weights, one.parent, "-o", tmp_path / "out", "--overwrite") == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != first


def test_an_input_of_the_same_content_is_done_wherever_it_is(weights, tmp_path, capsys):
    one = picture(tmp_path / "in" / "a.bmp")
    assert restore(weights, one.parent, "-o", tmp_path / "out") == 0
    one.parent.rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "a.bmp", (1, 1))
    assert restore(weights, tmp_path / "moved", "-o", tmp_path / "out") == 0
    assert "1 of 1 files are done already" in capsys.readouterr().out


def test_inputs_are_read_to_find_what_is_done_only_where_a_target_exists(weights, tmp_path, monkeypatch):
    files = [picture(tmp_path / "in" / f"{number}.bmp") for number in range(4)]
    assert restore(weights, files[0], "-o", tmp_path / "out") == 0
    jobs = finding.find_jobs([str(files[0].parent)], tmp_path / "out", False, None, weights)
    opened, read = [], Path.open

    def record(path, *words, **options):
        opened.append(path)
        return read(path, *words, **options)

    monkeypatch.setattr(Path, "open", record)
    finding.left_to_do(jobs, "recipe")
    assert [path for path in opened if path.suffix == ".bmp"] == files[:1]


@pytest.mark.parametrize("name", ["n" * 250 + ".png", "é" * 125 + ".png", "n" * 251 + ".jpg"])
def test_a_name_as_long_as_the_disk_allows_is_restored(weights, tmp_path, name):
    try:
        file = picture(tmp_path / "in" / name, suffix="PNG")
    except OSError:
        pytest.skip("the disk takes no such name")
    picture(tmp_path / "in" / "z.png", suffix="PNG")
    assert restore(weights, file.parent, "-o", tmp_path / "out") == 0
    assert names_in(tmp_path / "out") == sorted([name, "z.png"])


def test_a_target_whose_name_is_too_long_fails_alone(weights, tmp_path, capsys):
    picture(tmp_path / "in" / ("n" * 251 + ".png"), suffix="PNG")  # as .webp it has 256 letters
    picture(tmp_path / "in" / "z.png", suffix="PNG")
    for options in ([], ["--overwrite"]):
        assert restore(weights, tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", *options) == 2
        message = capsys.readouterr().err
        assert "1 of 2 files could not be restored" in message and "File name too long" in message
        assert names_in(tmp_path / "out") == ["z.webp"]


@pytest.mark.parametrize("given", ["n" * 300, "n" * 300 + ".png", "n/" * 3000, "*" + "n" * 300])
def test_an_input_that_cannot_exist_is_refused_by_name(weights, tmp_path, capsys, given):
    assert restore(weights, tmp_path / given, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert any(words in message for words in ("File name too long", "holds no images")) and "Traceback" not in message
    assert restore(weights, picture(tmp_path / "a.bmp"), "-o", tmp_path / given) == 2


@pytest.mark.parametrize(
    ("number", "others"), [(errno.EACCES, 2), (errno.EINVAL, 2), (errno.ENAMETOOLONG, 2), (errno.ENOSPC, 0)]
)
def test_an_error_of_one_file_leaves_the_others_alone_and_one_of_the_disk_lists_them(
    weights, tmp_path, capsys, monkeypatch, number, others
):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name, suffix="PNG")

    def fail(path, data):
        if path.name == "a.png":
            raise OSError(number, os.strerror(number))
        replace_file(path, data)

    monkeypatch.setattr(restoring, "replace_file", fail)
    monkeypatch.setattr(restoring, "_MAX_WAITING", 1)
    assert restore(weights, tmp_path / "in", "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "a.png: cannot be written" in message and os.strerror(number) in message
    if others:
        assert "1 of 3 files could not be restored" in message and names_in(tmp_path / "out") == ["b.png", "c.png"]
    else:
        assert "2 more files were not tried; the same command continues" in message


def test_weights_are_never_overwritten(weights, tmp_path, capsys):
    photo = picture(tmp_path / "photo.png", suffix="PNG")
    file = tmp_path / "best.png"  # an unusual name for weights
    shutil.copy(weights, file)
    for target in (file, tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "folder" / "photo.png"):
        if target.name == "link.png":
            target.symlink_to(file)
        elif target != file:
            target.parent.mkdir(exist_ok=True)
            os.link(file, target)
        assert restore(file, photo, "-o", target, "--overwrite") == 2
        assert f"{target}: is the weights, which is never overwritten" in capsys.readouterr().err
    assert file.read_bytes() == weights.read_bytes()


def test_two_targets_that_a_disk_takes_for_one_are_refused(weights, tmp_path, capsys, monkeypatch):
    for name in ("a.png", "A.png", "É.png", "E\u0301.png"):
        picture(tmp_path / "in" / name, suffix="PNG")
    assert restore(weights, tmp_path / "in", "-o", tmp_path / "one") == 0 and len(names_in(tmp_path / "one")) == 4
    monkeypatch.setattr(finding, "_folds_case", lambda folder: True)
    assert restore(weights, tmp_path / "in", "-o", tmp_path / "two") == 2
    assert capsys.readouterr().err.count("has the same target as") == 2 and not (tmp_path / "two").exists()


def test_two_folders_of_the_output_that_are_one_are_noticed(weights, tmp_path, capsys):
    for folder in ("x", "y"):
        picture(tmp_path / "in" / folder / "a.png", suffix="PNG")
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "y").symlink_to(tmp_path / "out" / "x")
    assert restore(weights, tmp_path / "in", "--recursive", "-o", tmp_path / "out") == 2
    assert "has the same target as" in capsys.readouterr().err and not names_in(tmp_path / "out" / "x")


def test_this_disk_distinguishes_upper_and_lower_case(tmp_path):
    assert not finding._folds_case(tmp_path)


def test_the_work_before_the_first_image_is_linear_in_the_number_of_files(weights, tmp_path, monkeypatch):
    """For 3,000 files it took 10.9 s when a set of all jobs was built for each of them."""
    monkeypatch.setattr(command, "_restore_files", lambda *_: restoring.Outcome())
    counts = {}
    real = finding.Job.__hash__
    for number in (50, 200):
        file = picture(tmp_path / f"{number}" / "0.png", suffix="PNG")
        for copy in range(1, number):
            os.link(file, file.with_name(f"{copy}.png"))
        counts[number] = 0

        def count(job, number=number):
            counts[number] += 1
            return real(job)

        monkeypatch.setattr(finding.Job, "__hash__", count)
        assert restore(weights, file.parent, "-o", tmp_path / "out") == 0
    assert counts[200] <= 4 * counts[50] <= 4 * 10 * 50


def test_a_network_that_cannot_take_a_size_fails_for_that_file_alone(weights, tmp_path, capsys, monkeypatch):
    for side in (24, 48):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    real = restoring.Restorer.restore

    def picky(self, images, *words):
        if images.shape[-1] == 24:
            raise RuntimeError("sizes do not match")
        return real(self, images, *words)

    monkeypatch.setattr(restoring.Restorer, "restore", picky)
    assert restore(weights, tmp_path / "24.png", tmp_path / "48.png", "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "24.png: the network fails for this image (RuntimeError: sizes do not match)" in message
    assert names_in(tmp_path / "out") == ["48.png"]


def test_an_input_out_of_reach_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        finding.status_of(Path("a\0b"))


def test_what_a_folder_holds_besides_images_is_counted(weights, tmp_path, capsys):
    folder = picture(tmp_path / "in" / "a.png", suffix="PNG").parent
    for name in ("b.heic", "c.txt", ".d.png"):
        (folder / name).touch()
    (folder / "sub").mkdir()
    assert restore(weights, folder, "-o", tmp_path / "out") == 0 and names_in(tmp_path / "out") == ["a.png"]
    out = " ".join(capsys.readouterr().out.split())
    assert "1 .heic, 1 .txt, 1 hidden, 1 folder (--recursive searches them)" in out


def test_formats_that_are_read_when_named_are_read_in_a_folder(weights, tmp_path):
    for name in ("a.jfif", "b.jpe", "c.gif", "d.jp2"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (24, 24)).save(tmp_path / "in" / name)
    assert restore(weights, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert {Path(name).stem for name in names_in(tmp_path / "out")} == {"a", "b", "c", "d"}


def test_a_link_that_leads_nowhere_and_an_unreadable_folder_fail_alone(weights, tmp_path, capsys, monkeypatch):
    folder = picture(tmp_path / "in" / "a.png", suffix="PNG").parent
    (folder / "b.png").symlink_to("nowhere.png")
    (folder / "closed").mkdir()
    scan = os.scandir

    def refuse(path="."):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert restore(weights, folder, "--recursive", "-o", tmp_path / "out") == 2
    assert names_in(tmp_path / "out") == ["a.png"]
    message = capsys.readouterr().err
    assert "1 of 2 files and 1 folder could not be restored" in message
    assert "b.png: " in message and "closed: cannot be read (Permission denied)" in message
