"""Rows of data sets become the same pairs as folders do: every kind of storage, column, cell and mistake."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_restore.config.load import config_from, load_config, to_yaml
from accel_restore.config.schema import Config
from accel_restore.config.sets import Source
from accel_restore.data.decode import Cell, read_image
from accel_restore.data.hf_datasets import find_rows
from accel_restore.data.image_formats import ImageError
from accel_restore.data.pairs import find_pairs
from accel_restore.errors import UserError

NAMES = ["c", "a", "b"]  # rows in another order than names


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "png")
    return buffer.getvalue()


def content(side: str, name: str) -> int:
    """The seed of an image's pixels."""
    return ord(name) + 1000 * (side == "noisy")


def folders(base: Path) -> dict[str, str]:
    """Folders of pairs, as gt and input."""
    for side in ("clean", "noisy"):
        (base / side).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (base / side / f"{name}.png").write_bytes(encoded(content(side, name)))
    return {"gt": str(base / "clean"), "input": str(base / "noisy")}


def table(kind: str = "image", order: list[str] = NAMES):
    """Rows of pairs in the columns clean and noisy."""
    import datasets

    make, feature = {
        "image": (lambda seed, path: {"bytes": encoded(seed), "path": path}, datasets.Image()),
        "bytes": (lambda seed, path: encoded(seed), datasets.Value("binary")),
        "array": (lambda seed, path: pixels(seed), datasets.Array3D((6, 5, 3), "uint8")),
        "lists": (lambda seed, path: pixels(seed).tolist(),
                  datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))),
    }[kind]  # fmt: skip
    sides = {side: [make(content(side, name), f"{name}.png") for name in order] for side in ("clean", "noisy")}
    return datasets.Dataset.from_dict(sides, features=datasets.Features(dict.fromkeys(sides, feature)))


def find(dataset, **keys) -> list:
    pairs, problems = find_rows(Source(dataset=dataset, **{"gt": "clean", "input": "noisy", **keys}), "data.train")
    assert not problems
    return pairs


def problems(dataset, **keys) -> list[str]:
    return find_rows(Source(dataset=dataset, **{"gt": "clean", "input": "noisy", **keys}), "data.train")[1]


def seen(pairs: list) -> dict[str, tuple[bytes, bytes]]:
    return {p.name: tuple(read_image(image, 3).tobytes() for image in (p.gt, p.input)) for p in pairs}


EXPECTED = {name: tuple(pixels(content(side, name)).tobytes() for side in ("clean", "noisy")) for name in sorted(NAMES)}


def write_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in NAMES:
            for side in ("noisy", "clean"):
                member = tarfile.TarInfo(f"{name}.{side}.png")
                data = encoded(content(side, name))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write(kind: str, base: Path) -> dict:
    """A data set of one kind of storage, as keys of a source."""
    import datasets

    path = base / "made"
    if kind == "parquet":
        table().to_parquet(path.with_suffix(".parquet"))
        return {"dataset": str(path.with_suffix(".parquet"))}
    if kind == "several parquet files":
        for number in range(2):
            table(order=NAMES[number::2]).to_parquet(base / f"part-{number}.parquet")
        return {"dataset": str(base / "part-*.parquet")}
    if kind == "folder of parquet":
        path.mkdir()
        table().to_parquet(path / "train-0.parquet")
        return {"dataset": str(path)}
    if kind == "saved":
        table().save_to_disk(path)
        return {"dataset": str(path)}
    if kind == "saved splits":
        datasets.DatasetDict(train=table().select([0]), test=table()).save_to_disk(path)
        return {"dataset": str(path), "split": "test"}
    if kind == "arrow":
        table().save_to_disk(path)
        return {"dataset": str(next(path.glob("*.arrow")))}
    if kind == "webdataset":
        return {"dataset": str(write_tar(path.with_suffix(".tar"))), "gt": "clean.png", "input": "noisy.png"}
    folders(path)
    if kind == "imagefolder":
        rows = [f"noisy/{name}.png,clean/{name}.png" for name in NAMES]
        (path / "metadata.csv").write_text("\n".join(["noisy_file_name,clean_file_name", *rows]))
        return {"dataset": str(path)}
    if kind == "csv of paths":
        rows = [f"noisy/{name}.png,{path}/clean/{name}.png" for name in NAMES]  # beside the file, and absolute
        (path / "rows.csv").write_text("\n".join(["noisy,clean", *rows]))
        return {"dataset": str(path / "rows.csv")}
    (path / "rows.jsonl").write_text(
        "\n".join(f'{{"noisy": "noisy/{name}.png", "clean": "clean/{name}.png"}}' for name in NAMES)
    )
    return {"dataset": str(path / "rows.jsonl")}


KINDS = ["parquet", "several parquet files", "folder of parquet", "saved", "saved splits", "arrow", "webdataset",
         "imagefolder", "csv of paths", "jsonl of paths"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_gives_the_pairs_of_the_folders(kind, tmp_path, capfd):
    pairs, _ = find_pairs(**folders(tmp_path), key="data.train")
    assert seen(pairs) == EXPECTED
    source = write(kind, tmp_path)
    capfd.readouterr()
    found = find(**source)
    assert capfd.readouterr().err == ""
    assert seen(found) == EXPECTED and [p.name for p in found] == [p.name for p in pairs]
    if kind in ("imagefolder", "csv of paths", "jsonl of paths"):
        assert all(isinstance(image, Path) for pair in found for image in (pair.gt, pair.input))


@pytest.mark.parametrize("kind", ["image", "bytes", "array", "lists"])
def test_every_kind_of_cell_in_an_object(kind):
    pairs = find(table(kind))
    assert [p.name for p in pairs] == (["a", "b", "c"] if kind == "image" else ["0", "1", "2"])
    rows = sorted(NAMES) if kind == "image" else NAMES
    assert list(seen(pairs).values()) == [EXPECTED[name] for name in rows]
    assert str(find(table(kind))[1].input) == f"the data set row {2 if kind == 'image' else 1}, column noisy"


def test_selected_and_reordered_rows():
    data = table("lists", [*"abcdef"])
    for chosen in (
        data.select([4, 1, 0]),
        data.select(range(2, 5)),
        data.shuffle(seed=3),
        data.filter(lambda _, i: i % 2, with_indices=True),
    ):
        rows = [np.array(row["clean"], np.uint8).tobytes() for row in chosen]
        assert [gt for gt, _ in seen(find(chosen)).values()] == rows
    assert seen(find(table().select([1, 2]))) == {name: EXPECTED[name] for name in ("a", "b")}


def test_sixteen_bits_and_rectangles_only():
    import datasets

    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    gt = find_rows(Source(dataset=datasets.Dataset.from_dict({"x": [deep]}), gt="x"), "data.train")[0][0].gt
    np.testing.assert_array_equal(gt.fetch(), deep)
    assert gt.fetch().dtype == np.uint16
    for bad in ([[1, 2], [3]], [[1, 2], [3, None]]):
        feature = datasets.Features({"x": datasets.List(datasets.List(datasets.Value("uint8")))})
        data = datasets.Dataset.from_dict({"x": [bad]}, features=feature)
        with pytest.raises(ImageError, match="rectangle"):
            find_rows(Source(dataset=data, gt="x"), "data.train")[0][0].gt.fetch()


def test_names_are_row_numbers_if_paths_are_not_unique():
    import datasets

    rows = [{"bytes": encoded(n), "path": path} for n, path in enumerate([f"{n}/x.png" for n in range(11)])]
    feature = datasets.Features({"gt": datasets.Image()})
    pairs, _ = find_rows(Source(dataset=datasets.Dataset.from_dict({"gt": rows}, features=feature)), "data.train")
    assert [p.name for p in pairs] == [f"{n:02}" for n in range(11)]
    assert pairs[10].gt.fetch() == encoded(10)


def test_the_one_column_of_images_is_gt():
    data = table().remove_columns("noisy").add_column("size", [1, 2, 3])
    pairs, found = find_rows(Source(dataset=data), "data.train")
    assert not found and len(pairs) == 3 and pairs[0].input is None
    (problem,) = find_rows(Source(dataset=table()), "data.train")[1]
    assert problem.startswith("data.train.gt: ") and "clean (Image)" in problem and "noisy (Image)" in problem
    (problem,) = find_rows(Source(dataset=data, input="clean"), "data.train")[1]
    assert problem.startswith("data.train.gt: ")


def test_threads_read_cells_concurrently(tmp_path):
    order = [chr(code) for code in range(97, 123)]
    table(order=order).to_parquet(tmp_path / "x.parquet", batch_size=4)
    pairs = find(str(tmp_path / "x.parquet"))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda pair: pair.gt.fetch(), list(pairs) * 20))
    assert read == [encoded(content("clean", name)) for name in order] * 20


def identities(dataset, **keys) -> list[str]:
    return [image.identity for pair in find(dataset, **keys) for image in (pair.gt, pair.input)]


@pytest.mark.parametrize("kind", ["parquet", "saved", "saved splits", "webdataset"])
def test_identity_changes_only_with_the_source(kind, tmp_path):
    source = write(kind, tmp_path)
    first = identities(**source)
    assert len(set(first)) == 6 and identities(**source) == first
    write_again = {"parquet": tmp_path / "made.parquet", "webdataset": tmp_path / "made.tar"}.get(kind)
    if write_again:
        os.utime(write_again, (1, 1))
    else:
        write(kind, tmp_path)  # by equal steps: the library's fingerprint is the same
    assert set(identities(**source)).isdisjoint(first)


def test_a_saved_data_set_unpacked_over_another_at_equal_times_is_another(tmp_path):
    source = write("saved", tmp_path)
    first, times = identities(**source), {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    write("saved", tmp_path)
    for file, time in times.items():
        os.utime(file, ns=(time, time))
    assert set(identities(**source)).isdisjoint(first)


def test_identity_of_an_object_depends_on_its_content():
    first = identities(table())
    assert identities(table()) == first
    other = table(order=["c", "a", "d"])
    assert set(identities(other)).isdisjoint(first) and set(identities(table().select([0, 1]))).isdisjoint(first)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"gt": "claen"},
            ("data.train.gt: no column 'claen'", "clean (Image), noisy (Image)", "did you mean 'clean'?"),
        ),
        ({"input": "x"}, ("data.train.input: no column 'x'",)),
        ({"input": "clean"}, ("data.train: input and gt are the same column 'clean'",)),
        ({"input": "size"}, ("data.train.input: column 'size'", "int64", "uint8, uint16, float16 or float32")),
    ],
)
def test_wrong_columns_are_reported(keys, words):
    (problem,) = problems(table().add_column("size", [1, 2, 3]), **keys)
    assert all(word in problem for word in words), problem


def test_rows_without_an_image_are_reported(tmp_path):
    import datasets

    rows = [
        {"clean": encoded(1), "noisy": None},
        {"clean": encoded(2), "noisy": encoded(3)},
        {"clean": None, "noisy": None},
    ]
    pairs, found = find_rows(Source(dataset=datasets.Dataset.from_list(rows), gt="clean", input="noisy"), "data.train")
    assert [pair.name for pair in pairs] == ["1"]
    assert [problem.split(": ")[0] for problem in found] == [
        f"the data set row {row}, column {column}" for row, column in ((2, "clean"), (0, "noisy"), (2, "noisy"))
    ]
    (tmp_path / "rows.csv").write_text("clean,noisy\nx.png,y.png\n" + "z" * 5000 + ",y.png\n")
    found = problems(str(tmp_path / "rows.csv"))
    assert len(found) == 4 and found[0].startswith("rows.csv row 0, column clean: names the file x.png")
    assert problems(table().select([])) == ["data.train.dataset: the data set has no rows"]


def test_missing_and_unreadable_data_sets_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "photo.png").write_bytes(encoded(0))
    for name, words in {
        "data/none.parquet": ("does not exist", str(tmp_path)), "./none": ("does not exist",),
        "csv": ("does not exist",), "none-*.tar": ("does not exist",), "empty": ("any data files",),
        "bad.parquet": ("cannot be loaded",),
        "photo.png": ("not a data set file", ".parquet"),
        "owner/none": ("not a file or folder", str(tmp_path), "Hub", "cannot be reached"),
    }.items():  # fmt: skip
        (problem,) = problems(name)
        assert problem.startswith("data.train.dataset: ") and "\n" not in problem
        assert all(word in problem for word in words), problem


@pytest.mark.parametrize("said", ["'o/x' is a gated dataset on the Hub.", "'o/x' doesn't exist on the Hub."])
def test_refusal_of_the_hub_is_reported(said, monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {said}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    (problem,) = problems("o/x")
    assert said in problem and "hf auth login" in problem and "not a file or folder" in problem


def test_splits_and_subsets(tmp_path):
    import datasets

    write("folder of parquet", tmp_path)
    folder = tmp_path / "made"
    assert len(find(str(folder), split="train[:2]")) == 2
    for dataset in (folder, folder / "train-0.parquet"):
        (problem,) = problems(str(dataset), split="test")
        assert problem == f"data.train.split: no split 'test' in {dataset}; it has: train"
    (problem,) = problems(str(folder / "train-0.parquet"), subset="a")
    assert problem.startswith("data.train.subset: ")
    (folder / "README.md").write_text(
        "---\nconfigs:\n" + "".join(f"- config_name: {n}\n  data_files: train-0.parquet\n" for n in "ab") + "---\n"
    )
    assert len(find(str(folder), subset="b")) == 3
    for subset in ({}, {"subset": "c"}):
        (problem,) = problems(str(folder), **subset)
        assert problem.startswith("data.train.subset: ") and problem.endswith("a, b")
    datasets.DatasetDict(fit=table(), test=table()).save_to_disk(tmp_path / "splits")
    (problem,) = problems(str(tmp_path / "splits"))
    assert "no split 'train'" in problem and problem.endswith("fit, test")
    table().save_to_disk(tmp_path / "one")
    assert problems(str(tmp_path / "one"), split="test")[0].startswith("data.train.split: ")


def wrong(**source) -> list[str]:
    with pytest.raises(UserError) as caught:
        config_from({"data": {"train": source}, "model": {"name": "unet"}})
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines() if "data.train" in line]


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ({}, ["data.train"]), ({"input": "x"}, ["data.train"]),
        ({"gt": "x", "split": "a", "subset": "b"}, ["data.train.split", "data.train.subset"]),
        ({"gt": ["x"], "input": ["y"], "dataset": "z"}, ["data.train.input", "data.train.gt"]),
        ({"gt": "x", "dataset": "z", "recursive": True}, ["data.train.recursive"]),
        ({"gt": "{}.png", "recursive": True}, ["data.train.recursive"]),
        ({"dataset": ""}, ["data.train.dataset"]), ({"dataset": 5}, ["data.train.dataset"]),
        ({"gt": "x", "recursive": 1}, ["data.train.recursive"]),
    ],
)  # fmt: skip
def test_contradictory_keys_are_rejected(source, keys):
    assert [line.split(": ")[0] for line in wrong(**source)] == keys


def test_objects_without_rows_are_rejected():
    import datasets

    assert "dataset['fit']" in wrong(dataset=datasets.DatasetDict(fit=table()))[0]
    assert "without streaming" in wrong(dataset=table().to_iterable_dataset())[0]
    assert wrong(dataset=table(), split="train")[0].startswith("data.train.split: ")


def test_an_object_is_named_in_the_configuration_that_a_run_leaves(tmp_path):
    data = table()
    config = config_from({"data": {"train": {"dataset": data, "gt": "clean"}}})
    assert config.data.train.dataset is data
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    words = config.model_dump(mode="json")["data"]["train"]["dataset"]
    assert (
        words == f"<Dataset of 3 rows, fingerprint {data._fingerprint}>"
        and words in (tmp_path / "config.yaml").read_text()
    )
    other = config_from({"data": {"train": {"dataset": table(order=["a", "b", "d"]), "gt": "clean"}}})
    assert other.model_dump(mode="json")["data"]["train"]["dataset"] != words
    with pytest.raises(UserError, match=r"data\.train\.dataset: <Dataset of 3 .* was passed as a Python object"):
        load_config(tmp_path / "config.yaml")


def test_schema_of_a_data_set_is_a_string():
    schema = Config.model_json_schema()["$defs"]["TrainSet"]["properties"]
    assert schema["dataset"]["anyOf"][0]["type"] == "string" and schema["recursive"]["type"] == "boolean"


def test_cells_of_equal_identity_are_equal():
    one, two = (Cell("x", "1", lambda: b"") for _ in range(2))
    assert one == two and hash(one) == hash(two)
