"""Files from strangers: nothing in them is executed, and dataset rows reach no file outside their folder."""

import ast
import glob
import io
import json
import pickle
import re
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bombs import Bomb
from PIL import Image
from weight_files import build, write

import accel_restore
from accel_restore.config.load import config_from, load_config, parse_yaml
from accel_restore.config.sets import Source
from accel_restore.data import hf_datasets as hub
from accel_restore.data.pairs import find_pairs
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.utils.glob import matches

PACKAGE = Path(accel_restore.__file__).parent
PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def unsafe(source):
    """Return the lines of a program that unpickle data or execute text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        bad = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {
            part for module in modules for part in module.split(".")
        }
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {argument.arg: ast.unparse(argument.value) for argument in node.keywords}
            bad = bad or (
                name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
                or (name == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or given.get("shell", "False") != "False"
                or (
                    name in ("yaml.load", "yaml.load_all") and given.get("Loader") not in ("_Loader", "yaml.SafeLoader")
                )
                or re.fullmatch(r"yaml\.(unsafe|full)_load(_all)?", name)
            )
        if bad:
            found.append(node.lineno)
    return found


def test_the_package_never_unpickles_or_executes_text():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    assert {str(file): lines for file in files if (lines := unsafe(file.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import numpy, dill", "torch.load(f)", "import torch.jit, joblib",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.load(t, Loader=yaml.Loader)",
        "yaml.load(t, yaml.UnsafeLoader)", "yaml.unsafe_load(t)", "eval(t)", "exec(t)", "os.system(t)",
        "subprocess.run(t, shell=True)",
    ],
)  # fmt: skip
def test_control_the_search_finds_every_way_to_execute_a_file(line):
    assert unsafe(f"def f():\n    {line}\n") == [2]
    assert unsafe("torch.load(f, weights_only=True); yaml.load(t, Loader=_Loader); model.eval(); re.compile(t)") == []


def hostile_weights(kind, folder, trace):
    """Return a file of weights that creates the file `trace` when unpickled, and a function that unpickles it."""
    path, data = folder / f"weights.{kind}", pickle.dumps({"conv.weight": Bomb(trace)})
    if kind == "pkl":
        path.write_bytes(data)
        return path, lambda: pickle.loads(path.read_bytes())
    if kind == "pth":
        torch.save({"conv.weight": Bomb(trace)}, path)
        return path, lambda: torch.load(path, weights_only=False)
    model = build(3)
    model.register_buffer("hidden", torch.frombuffer(bytearray(data), dtype=torch.uint8))
    write(path, model)
    return path, lambda: pickle.loads(path.read_bytes()[-len(data) :])


@pytest.mark.parametrize("kind", ["pkl", "pth", "safetensors"])
def test_a_pickle_that_runs_a_program_is_rejected_without_running_it(kind, tmp_path):
    trace = tmp_path / "executed"
    path, unpickle = hostile_weights(kind, tmp_path, trace)
    with pytest.raises(UserError, match=rf"^{path}: [^\n]+$"):
        restorer.load(path)
    assert not trace.exists()
    unpickle()  # the control
    assert trace.exists()


def test_a_pickle_in_an_archive_of_rows_is_not_run(tmp_path):
    trace = tmp_path / "executed"
    pickles = {"pyd": pickle.dumps(Bomb(trace)), "pickle": pickle.dumps(Bomb(trace))}
    pickles["npy"] = _saved(lambda file: np.save(file, np.array([Bomb(trace)], dtype=object), allow_pickle=True))
    pickles["pth"] = _saved(lambda file: torch.save(Bomb(trace), file))
    for suffix, data in pickles.items():
        archive = tmp_path / f"{suffix}.tar"
        members = {"0.png": _saved(lambda file: Image.fromarray(PIXELS).save(file, "png")), f"0.{suffix}": data}
        with tarfile.open(archive, "w") as tar:
            for name, content in {**members, "../../evil.png": members["0.png"]}.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        hub.find_rows(Source(dataset=str(archive), gt="png"), "data.train")
    assert not trace.exists() and not list(tmp_path.parent.glob("evil*"))
    np.load(io.BytesIO(pickles["npy"]), allow_pickle=True)  # the control
    assert trace.exists()


def _saved(save):
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def laughs(depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)])


HOSTILE_YAML = {
    "object": ("!!python/object/apply:builtins.open [TRACE, w]", "python/object/apply.* is not allowed"),
    "name": ("!!python/name:os.system", "is not allowed"),
    "own tag": ("a: !Config {}", "is not allowed"),
    "binary": ("a: !!binary AAAA", "is not allowed"),
    "laughs": (laughs(9), "more than 500,000 values"),
    "loop": ("&a [*a]", "nested deeper than 64 levels"),
    "merged laughs": ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "is not allowed"),
    "deep": ("[" * 300 + "]" * 300, "nested deeper than 64 levels"),
    "very deep": ("{a: " * 20_000, "nested too deeply"),
    "digits": ("a: " + "9" * 100_000, "more than 64 digits"),
    "hexadecimal": ("a: 0x" + "f" * 60, "more than 63 bits"),
    "number": ("a: 99999999999999999999", "more than 63 bits"),
    "duplicate key": ("model: {name: unet}\nmodel: {name: dncnn}", "duplicate key 'model'"),
    "deep duplicate key": ("a: [{b: 1, b: 1}]", "duplicate key 'b'"),
    "list as a key": ("? [1, 2]\n: 3", "a key must be a word"),
    "NUL": ('a: "\\0"', "NUL"),
    "surrogate": ('a: "\\ud800"', "UTF-8|not valid YAML"),
    "base 60": ("a: 1" + ":59" * 300_000, "more than 64 digits"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_rejected_in_one_sentence(kind, tmp_path):
    text, reason = HOSTILE_YAML[kind]
    trace, file = tmp_path / "executed", tmp_path / "hostile.yaml"
    file.write_text(text.replace("TRACE", str(trace)))
    with pytest.raises(UserError, match=rf"^{file}[^\n]*({reason})[^\n]*$"):
        load_config(file)
    with pytest.raises(UserError, match=reason):  # as an override too
        parse_yaml(file.read_text(), "model.width")
    assert not trace.exists()


def test_control_plain_yaml_accepts_hostile_files(tmp_path):
    trace = tmp_path / "executed"
    yaml.load(HOSTILE_YAML["object"][0].replace("TRACE", str(trace)), Loader=yaml.UnsafeLoader)
    assert trace.exists()
    tree = yaml.safe_load(laughs(5))
    assert str(tree).count("x") > 60_000  # nine times as many with each further line
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}


def test_a_configuration_file_without_end_is_rejected(tmp_path):
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is larger than 16 MB"):
        load_config(tmp_path / "zeros.yaml")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", " ", "a/b", "../a", "/a", "a\\b", "..\\a", "a\nb", "a\x1b[2J", "a\x7f", "ä" * 101]
)
def test_a_run_name_must_name_one_folder(name):
    with pytest.raises(UserError, match=r"run\.name: must name one folder"):
        config_from({"data": {"train": {"gt": "photos"}}, "run": {"name": name}})
    assert config_from({"data": {"train": {"gt": "photos"}}, "run": {"name": "größe 2.0"}}).run.name == "größe 2.0"


@pytest.fixture
def photos(tmp_path):
    """A folder of a stranger's photographs, next to a file that is not theirs."""
    for name in ("theirs/photo.png", "private/secret.png", "secret.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / name)
    return tmp_path / "theirs"


REACHING = {
    "parent": "../private/secret.png", "there and back": "../theirs/../secret.png", "absolute": "ROOT/secret.png",
    "link": "link.png", "linked folder": "elsewhere/secret.png", "home": "~/secret.png", "NUL": "a\0b.png",
    "long": "a/" * 5000 + "b.png", "URL": "file://ROOT/secret.png", "web": "https://example.com/secret.png",
}  # fmt: skip


@pytest.mark.parametrize("kind", REACHING)
def test_rows_reach_no_files_outside_their_folder(kind, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (photos / "link.png").symlink_to(tmp_path / "secret.png")
    (photos / "elsewhere").symlink_to(tmp_path / "private")
    path = REACHING[kind].replace("ROOT", str(tmp_path))
    (photos / "rows.jsonl").write_text("".join(json.dumps({"gt": each}) + "\n" for each in ("photo.png", path)))
    source = Source(dataset=str(photos / "rows.jsonl"), gt="gt")
    pairs, (problem,) = hub.find_rows(source, "data.train")
    assert [pair.gt for pair in pairs] == [photos / "photo.png"]
    assert re.search("row 1, column gt: names the file .*(is outside|does not exist)", problem) and "\n" not in problem
    trusted = source.model_copy(update={"root": str(tmp_path)})
    if kind in ("absolute", "home"):
        assert hub.find_rows(trusted, "data.train")[1][0].startswith("rows.jsonl row 0")  # rows now begin elsewhere
    monkeypatch.setattr(hub, "_reach", lambda *_: hub.Reach(photos))
    reached = hub.find_rows(source, "data.train")[0]  # the control
    assert len(reached) == (1 if kind in ("NUL", "long", "URL", "web") else 2)


def test_patterns_match_only_files_below_their_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    for pattern in ("{}/secret.png", "{}{}/secret.png", "**/{}ecret.png", "*/{}.png", f"{photos}/{{}}/secret.png"):
        assert find_pairs(pattern, None, "data.train")[0] == [], pattern  # `..` is the name of no image
    (pair,) = find_pairs("../private/{}.png", None, "data.train")[0]  # written out by the user
    assert pair.name == "secret"


def test_folders_that_link_to_themselves_are_searched_once(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    Image.fromarray(PIXELS).save(root / "a" / "photo.png")
    for name in ("a/up", "a/again", "b"):
        (root / name).symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "0 also a").symlink_to(root / "a")
    pairs, problems = find_pairs(str(root), None, "data.train", recursive=True)
    assert problems == [] and [pair.gt for pair in pairs] == [root / "a" / "photo.png"]
    assert len(list(islice(glob.iglob(f"{root}/**/*", recursive=True), 10_000))) == 10_000  # the control


def test_linked_folders_are_searched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    Image.fromarray(PIXELS).save(tmp_path / "elsewhere" / "deep" / "photo.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    pairs, problems = find_pairs(str(tmp_path / "data"), None, "data.train", recursive=True)
    assert problems == [] and [pair.name for pair in pairs] == ["link/deep/photo"]


def test_folders_that_all_link_to_each_other_are_searched_once(tmp_path):
    for one in range(12):
        (tmp_path / f"{one}").mkdir()
        (tmp_path / f"{one}" / "photo.png").touch()
    for one in range(12):
        for other in range(12):
            (tmp_path / f"{one}" / f"to{other}").symlink_to(tmp_path / f"{other}")
    found = list(matches("**/*.png", tmp_path))
    assert len(found) == 12 and {(tmp_path / name).resolve().parent.name for name in found} == set(map(str, range(12)))
