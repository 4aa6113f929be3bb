"""Folders, patterns and lists of files become pairs; all files without a partner are reported at once."""

import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_restore.data.decode import Cell
from accel_restore.data.file_search import EXTENSIONS
from accel_restore.data.image_formats import FORMATS
from accel_restore.data.pairs import Pair, Pairs, find_pairs, held_out
from accel_restore.errors import UserError


def make(folder: Path, *names: str) -> Path:
    """Create an empty file of each name in the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(gt, input=None, recursive: bool = False) -> list[str]:
    """The names of the pairs, or the problems."""
    pairs, problems = find_pairs(gt, input, "data.train", recursive)
    return problems or [pair.name for pair in pairs]


def partners(base: Path, gt: str, input: str) -> dict[str, tuple[str, str]]:
    """Name → gt and input below `base`, of sources below it that have no problems."""
    pairs, problems = find_pairs(f"{base}/{gt}", f"{base}/{input}", "data.train")
    assert not problems
    return {p.name: tuple(path.relative_to(base).as_posix() for path in (p.gt, p.input)) for p in pairs}


def test_folders_pair_by_stem_in_order_of_names(tmp_path):
    gt = make(tmp_path / "gt", "b.png", "a.JPG", "notes.txt", ".b.png", "deep/c.png")
    noisy = make(tmp_path / "noisy", "a.png", "b.jpeg")
    found = [(p.name, p.gt.name, p.input.name) for p in find_pairs(str(gt), str(noisy), "data.train")[0]]
    assert found == [("a", "a.JPG", "a.png"), ("b", "b.png", "b.jpeg")] and names(str(gt), str(noisy)) == ["a", "b"]


def test_sub_folders_are_searched_where_asked_for(tmp_path):
    gt = make(tmp_path / "gt", "x.png", "s1/x.png", "s2/deep/x.y.png", ".hidden/x.png", "s1/.x.png", "s1/x.txt")
    noisy = make(tmp_path / "noisy", "x.jpg", "s1/x.jpg", "s2/deep/x.y.jpg")
    assert names(str(gt), str(noisy), recursive=True) == ["s1/x", "s2/deep/x.y", "x"]
    assert names(str(gt), str(noisy)) == ["x"]  # the control


def test_patterns_pair_by_the_part_in_braces(tmp_path):
    base = make(tmp_path / "a[1]*", "x_real.png", "x_mean.png", "y_real.png", "y_mean.png", "z.png", ".h_mean.png")
    assert names(f"{base}/{{}}_mean.png", f"{base}/{{}}_real.png") == ["x", "y"]
    make(tmp_path / "shots", "1/gt.png", "2/gt.png", "2/deep/gt.png", ".3/gt.png")
    assert names(f"{tmp_path}/shots/{{}}/gt.png") == ["1", "2"]


def test_braces_may_occur_several_times(tmp_path):
    make(tmp_path, *(f"{part}/{scene}/{kind}/{frame}.png" for part in ("train", "test") for scene in ("s1", "s2")
                     for kind in ("sharp", "blur") for frame in ("1", "2")))  # fmt: skip
    make(tmp_path, "train/s1/sharp/deep/3.png")
    found = partners(tmp_path, "train/{}/sharp/{}.png", "train/{}/blur/{}.png")
    assert list(found) == ["s1/1", "s1/2", "s2/1", "s2/2"]
    assert found["s2/1"] == ("train/s2/sharp/1.png", "train/s2/blur/1.png")
    (problem,) = names(f"{tmp_path}/train/{{}}/sharp/{{}}.png", f"{tmp_path}/train/{{}}/blur/1.png")
    assert "2 times" in problem and "1 times" in problem and problem.startswith("data.train: gt has {}")


def test_two_stars_match_folders_of_any_depth(tmp_path):
    make(tmp_path, "clean/1.png", "clean/x/2.png", "clean/x/y/3.png", "noisy/1.png", "noisy/2.png", "noisy/z/3.png")
    found = partners(tmp_path, "clean/**/{}.png", "noisy/**/{}.png")
    assert {name: gt for name, (gt, _) in found.items()} == {
        "1": "clean/1.png", "2": "clean/x/2.png", "3": "clean/x/y/3.png"
    }  # fmt: skip
    make(tmp_path, "clean/y/2.png")
    (problem,) = names(f"{tmp_path}/clean/**/{{}}.png", f"{tmp_path}/noisy/**/{{}}.png")
    assert "y/2.png: has the same name '2'" in problem


def test_a_star_pairs_many_inputs_with_one_gt(tmp_path):
    make(tmp_path, "clean/a.png", "clean/b.png", "noisy/a_1.png", "noisy/a_2.png", "noisy/b_1.png", "noisy/s5/b.png")
    found = partners(tmp_path, "clean/{}.png", "noisy/{}_*.png")
    assert found == {
        "a/1": ("clean/a.png", "noisy/a_1.png"), "a/2": ("clean/a.png", "noisy/a_2.png"),
        "b/1": ("clean/b.png", "noisy/b_1.png"),
    }  # fmt: skip
    assert partners(tmp_path, "clean", "noisy/{}_*.png") == found
    make(tmp_path, "noisy/s5/a.png", "noisy/s9/a.png")
    assert list(partners(tmp_path, "clean/{}.png", "noisy/*/{}.png")) == ["a/s5", "a/s9", "b/s5"]
    make(tmp_path, "noisy/c_1.png")
    assert "noisy/c_1.png: has no partner 'c'" in names(f"{tmp_path}/clean", f"{tmp_path}/noisy/{{}}_*.png")[0]


def test_longest_name_of_a_gt_wins_for_ambiguous_patterns(tmp_path):
    make(tmp_path, "clean/img.png", "clean/img_1.png", "noisy/img_2.png", "noisy/img_1_2.png", "noisy/img_3_1_2.png")
    found = partners(tmp_path, "clean/{}.png", "noisy/{}_*.png")
    assert {name: gt for name, (gt, _) in found.items()} == {
        "img/2": "clean/img.png", "img_1/2": "clean/img_1.png", "img/3_1_2": "clean/img.png"
    }  # fmt: skip
    make(tmp_path, "ends/img.png", "ends/1_img.png", "before/n_img.png", "before/n_1_img.png")
    assert list(partners(tmp_path, "ends", "before/*_{}.png")) == ["1_img/n", "img/n"]
    make(tmp_path, "plain/img.png", "plain/img_1x.png", "plain/img2.png")
    assert list(partners(tmp_path, "clean/{}.png", "plain/{}*.png")) == ["img", "img/2", "img_1/x"]


def test_star_in_gt_matches_anything_but_names_nothing(tmp_path):
    make(tmp_path, "s1/a_GT_x.png", "s2/b_GT_y.png", "n/a.png", "n/b.png")
    assert partners(tmp_path, "s*/{}_GT_*.png", "n/{}.png")["b"] == ("s2/b_GT_y.png", "n/b.png")
    for source in ("s1/*.png", "s*"):
        (problem,) = names(f"{tmp_path}/{source}")
        assert problem.startswith("data.train.gt: ") and "write {} in place of the *" in problem
    (problem,) = names(f"{tmp_path}/n", f"{tmp_path}/s1/*.png")
    assert problem.startswith("data.train.input: ")


def test_lists_of_folders_and_patterns_pair_element_by_element(tmp_path):
    make(tmp_path, "a/x.png", "b/x_gt.png", "b/y_gt.png", "c/x.png", "d/x_in.png", "d/y_in.png")
    gt, noisy = [f"{tmp_path}/a", f"{tmp_path}/b/{{}}_gt.png"], [f"{tmp_path}/c", f"{tmp_path}/d/{{}}_in.png"]
    pairs, problems = find_pairs(gt, noisy, "data.train")
    assert not problems and [pair.name for pair in pairs] == ["0/x", "1/x", "1/y"]
    assert (pairs[1].gt, pairs[1].input) == (tmp_path / "b/x_gt.png", tmp_path / "d/x_in.png")
    assert names(gt) == ["0/x", "1/x", "1/y"] and names(gt[:1], noisy[0]) == ["0/x"]
    (problem,) = names(gt, noisy[:1])
    assert problem.startswith("data.train: gt names 2 and input 1 ")
    one, two = names([gt[0], f"{tmp_path}/none"], [noisy[0], f"{tmp_path}/e/{{}}.png"])
    assert one.startswith("data.train.gt.1: ") and "none does not exist" in one
    assert two.startswith("data.train.input.1: ") and "e does not exist" in two


def test_lists_of_files_and_files_of_an_installed_package(tmp_path):
    make(tmp_path, "b.png", "a.png", "noisy/a.jpg", "noisy/b.jpg")
    assert names([f"{tmp_path}/b.png", f"{tmp_path}/a.png"], f"{tmp_path}/noisy") == ["a", "b"]
    assert names(["package:skimage/data/coffee.png"]) == ["coffee"]
    with pytest.raises(UserError, match="'nosuchpackage' is not installed"):
        names(["package:nosuchpackage/x.png"])
    (problem,) = names([f"{tmp_path}/noisy", f"{tmp_path}/a.png"])
    assert problem.startswith("data.train.gt: ") and "a.png is a file" in problem


@pytest.mark.parametrize("other", ["A1", "a1 ", " a1", "A 1"])
@pytest.mark.parametrize("also", [True, False], ids=["among others", "alone"])
def test_a_name_that_differs_only_in_case_or_blanks_is_named(tmp_path, other, also):
    others = ["b.png"] if also else []
    gt, noisy = make(tmp_path / "gt", f"{other}.png", *others), make(tmp_path / "noisy", "a1.png", *others)
    _, (problem,) = find_pairs(str(gt), str(noisy), "data.train")
    assert "only in case or blanks" in problem
    for name in (other, "a1"):
        assert f"'{name}'" in problem or f"{name}.png" in problem


def test_a_gt_without_input_names_the_similar_input_of_another(tmp_path):
    gt, noisy = make(tmp_path / "gt", "a1.png", "A1.png"), make(tmp_path / "noisy", "a1.png")
    _, (problem,) = find_pairs(str(gt), str(noisy), "data.train")
    assert problem.startswith(f"{gt / 'A1.png'}: has no partner") and f"{noisy / 'a1.png'} differs only" in problem


def test_a_file_that_is_found_twice_is_reported_once(tmp_path):
    gt = make(tmp_path / "gt", "a.png")
    (gt / os.fsdecode(b"\xff.png")).touch()
    text = "\n".join(find_pairs(str(gt), str(gt), "data.train")[1])
    assert text.count("is not valid UTF-8") == 1


def test_all_problems_of_a_source_are_reported_together(tmp_path):
    gt = make(tmp_path / "gt", "a.png", "a.jpg", "b.png", "only_gt.png")
    noisy = make(tmp_path / "noisy", "a.png", "b.png", "only_input.png")
    text = "\n".join(find_pairs(str(gt), str(noisy), "data.train")[1])
    assert text.count("\n") == 2 and "has the same name 'a'" in text and "a.jpg" in text
    assert f"{gt / 'only_gt.png'}: has no partner" in text and f"{noisy / 'only_input.png'}: has no partner" in text


def test_name_that_is_not_utf8_is_a_problem(tmp_path):
    gt = make(tmp_path / "gt", "a.png")
    try:
        (gt / "a.png").rename(os.fsdecode(bytes(gt) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    make(gt, "b.png")
    pairs, (problem,) = find_pairs(str(gt), None, "data.train")
    assert [pair.name for pair in pairs] == ["b"]
    assert problem.encode() and "its name is not valid UTF-8" in problem and "caf" in problem


def test_one_problem_reports_that_nothing_pairs(tmp_path):
    gt = make(tmp_path / "gt", *(f"{number}_clean.png" for number in range(30)))
    noisy = make(tmp_path / "noisy", *(f"{number}_noisy.png" for number in range(30)))
    (problem,) = names(str(gt), str(noisy))
    assert "'0_clean'" in problem and "'0_noisy'" in problem and "patterns" in problem
    assert len(names(f"{gt}/{{}}_clean.png", f"{noisy}/{{}}_noisy.png")) == 30  # the remedy


def test_sources_without_images_are_explained(tmp_path):
    make(tmp_path, "nested/one/a.png", "empty/notes.txt")
    for source, message in {
        "missing": "does not exist", "empty": "no images", "nested": "1 folders: set recursive: true",
        "nested/one/a.png": "is a file", "{}.tiff": "no file matches", "none/{}.png": "none does not exist",
    }.items():  # fmt: skip
        pairs, (problem,) = find_pairs(str(tmp_path / source), None, "data.train")
        assert not pairs and problem.startswith("data.train.gt: ") and message in problem
    assert names(str(tmp_path / "nested"), recursive=True) == ["one/a"]  # the remedy
    (problem,) = names([str(tmp_path / "no.png")])
    assert "no such file" in problem and "no.png" in problem


def test_a_file_paired_with_itself_is_a_problem(tmp_path):
    make(tmp_path, "a_real.png", "a_mean.png")
    (problem,) = names(str(tmp_path), str(tmp_path))
    assert "the same file for 2 of 2 pairs" in problem
    assert names(f"{tmp_path}/{{}}_mean.png", f"{tmp_path}/{{}}_real.png") == ["a"]


def test_inputs_of_one_gt_are_held_out_together():
    def cell(name: str) -> Cell:
        return Cell(name, name, lambda: np.zeros(0))

    gts = {name: cell(name) for name in "abcdefghij"}
    pairs = [Pair(f"{name}/{number}", gt, cell(f"{name}{number}")) for name, gt in gts.items() for number in range(3)]
    train, val = held_out(Pairs.of(pairs), 0.2)
    assert {pair.gt for pair in train}.isdisjoint(pair.gt for pair in val)
    assert (len(train), len(val)) == (24, 6)


def all_suffixes() -> set[str]:
    """The suffixes of the formats that are decoded, by Pillow's registry."""
    Image.init()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"}} - {".pfm"}


def test_a_folder_is_searched_for_every_format_that_is_decoded(tmp_path):
    assert all_suffixes() | {".npy", ".exr"} == EXTENSIONS
    folder = make(tmp_path / "all", *(f"{number}{suffix}" for number, suffix in enumerate(sorted(EXTENSIONS))))
    notes: list[str] = []
    pairs, problems = find_pairs(str(folder), None, "data.train", notes=notes)
    assert len(pairs) == len(EXTENSIONS) and not problems and not notes


@pytest.mark.parametrize("recursive", [False, True])
def test_what_a_folder_search_leaves_out_is_counted_by_kind(tmp_path, recursive):
    gt = make(tmp_path / "gt", "a.png", "b.HEIC", "c.heic", "notes.txt", "README", "d.pfm", ".e.png", "sub/f.png")
    make(gt, ".DS_Store", "Thumbs.db", ".hidden/x.png")
    os.mkfifo(gt / "pipe.png")
    (gt / "gone").symlink_to("nowhere")
    notes: list[str] = []
    pairs, problems = find_pairs(str(gt), None, "data.train", recursive, notes)
    assert not problems and [pair.name for pair in pairs] == ["a", *(["sub/f"] * recursive)]
    (note,) = notes
    assert note.startswith(f"data.train.gt: left out of {gt}: ")
    for count in (
        "2 .heic",
        "1 .txt",
        "1 .pfm",
        "1 without a suffix",
        "2 hidden",
        "1 broken (links that lead nowhere)",
        "1 special (pipes, devices)",
    ):
        assert count in note
    assert ("1 folder (recursive: true" in note) is not recursive


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "recursive"])
def test_a_link_that_leads_nowhere_is_one_problem_of_its_image(tmp_path, kind):
    def place(side: str) -> str | list[str]:
        folder = tmp_path / side
        files = [f"{folder}/{name}.png" for name in "abc"]
        return {"pattern": f"{folder}/{{}}.png", "list": files}.get(kind, str(folder))

    for sides in (["gt"], ["noisy"], ["gt", "noisy"]):
        for side in ("gt", "noisy"):
            make(tmp_path / side, "a.png", "b.png", "c.png")
        for side in sides:
            (tmp_path / side / "b.png").unlink()
            (tmp_path / side / "b.png").symlink_to("b.png" if side == "gt" else "nowhere/b.png")
        pairs, problems = find_pairs(place("gt"), place("noisy"), "data.train", kind == "recursive")
        assert not problems and [pair.name for pair in pairs] == ["a", "b", "c"], "reading it reports it"
        broken = [path for pair in pairs for path in (pair.gt, pair.input) if not path.exists()]
        assert sorted(path.parent.name for path in broken) == sides
        for side in sides:
            (tmp_path / side / "b.png").unlink()


@pytest.mark.parametrize("kind", ["recursive", "pattern", "deep pattern", "folder"])
def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path, kind, monkeypatch):
    make(tmp_path / "gt", "1/a.png", "2/b.png")
    source = {"pattern": "gt/*/{}.png", "deep pattern": "gt/**/{}.png", "folder": "gt/2"}.get(kind, "gt")
    deny(monkeypatch, tmp_path / "gt" / "2")
    _, (problem,) = find_pairs(str(tmp_path / source), None, "data.train", kind == "recursive")
    assert problem.startswith(f"data.train.gt: {tmp_path / 'gt' / '2'}: cannot be read (Permission denied)")


def deny(monkeypatch, folder: Path) -> None:
    """Refuse to list a folder, also for root."""
    scan = os.scandir

    def refuse(path="."):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


NFC_NAME, NFD_NAME = (unicodedata.normalize(form, "Übung é") for form in ("NFC", "NFD"))


def test_names_are_compared_in_one_unicode_form(tmp_path):
    assert NFC_NAME != NFD_NAME
    make(tmp_path / "gt", f"{NFC_NAME}.png", f"{NFC_NAME}_gt.png")
    make(tmp_path / "noisy", f"{NFD_NAME}.png", f"{NFD_NAME}_in.png", f"{NFD_NAME}/{NFD_NAME}/x.png")
    (pair,) = find_pairs([f"{tmp_path}/gt/{NFC_NAME}.png"], [f"{tmp_path}/noisy/{NFC_NAME}.png"], "data.train")[0]
    assert pair.name == NFC_NAME and pair.input.exists() and pair.input.stem == NFD_NAME
    (pair,) = find_pairs(f"{tmp_path}/gt/{{}}_gt.png", f"{tmp_path}/noisy/{{}}_in.png", "data.train")[0]
    assert pair.name == NFC_NAME and pair.gt.stem == f"{NFC_NAME}_gt" and pair.input.stem == f"{NFD_NAME}_in"
    pairs, problems = find_pairs(f"{tmp_path}/noisy/{NFC_NAME}", None, "data.train", recursive=True)
    assert not problems and [pair.name for pair in pairs] == [f"{NFC_NAME}/x"], "also the folders"
    (pair,) = find_pairs(f"{tmp_path}/noisy/{NFC_NAME}/{NFC_NAME}/{{}}.png", None, "data.train")[0]
    assert pair.gt.exists() and pair.name == "x"
    make(tmp_path / "gt", f"{NFD_NAME}.png")
    (problem,) = find_pairs(str(tmp_path / "gt"), None, "data.train")[1]
    assert f"has the same name '{NFC_NAME}'" in problem


def test_folders_pair_in_any_unicode_form(tmp_path):
    gt, noisy = make(tmp_path / "gt", f"{NFD_NAME}.png", "b.png"), make(tmp_path / "in", f"{NFC_NAME}.jpg", "b.png")
    assert names(str(gt), str(noisy)) == sorted(["b", NFC_NAME])
