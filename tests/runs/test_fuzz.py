"""Any configuration, weights file or commit is either accepted or rejected with a `UserError`.

`pytest -m sweep tests/runs/test_fuzz.py` tries 50 times as many examples.
"""

import copy
import io
import json
import signal
from functools import partial

import pytest
import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from process_memory import memory
from runs import make_photos, small_config
from safetensors import SafetensorError
from weight_files import write

from accel_restore.checkpoint import state_dict as checkpoint
from accel_restore.checkpoint.commits import write_commit
from accel_restore.checkpoint.host_copy import HostCopy
from accel_restore.checkpoint.resume import find_resume_point
from accel_restore.checkpoint.state_dict import collect, load_commit
from accel_restore.config.load import config_from, load_config, parse_yaml, read_mapping, shipped, to_yaml
from accel_restore.config.schema import Config
from accel_restore.engine import setup_model_and_optimizer
from accel_restore.errors import UserError
from accel_restore.inference import restorer
from accel_restore.models import build_model
from accel_restore.utils.redaction import HIDDEN

DEMO = shipped("configs", "demo.yaml")
TIMES = pytest.mark.parametrize("times", [0.4, pytest.param(20, marks=pytest.mark.sweep)], ids=["", "sweep"])


@pytest.fixture(autouse=True)
def no_hanging(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)

    def stop(*_):
        raise TimeoutError("an example does not end")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(1800)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def attempt(strategy, examples, action):
    """Return the number of examples that `action` accepts (True) and rejects with a UserError (False).

    Any other exception fails the test, and so does using more than 700 MB of memory.
    """
    count = {True: 0, False: 0}

    @settings(
        max_examples=max(1, round(examples)),
        derandomize=True,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example):
        try:
            action(example)
            count[True] += 1
        except UserError as error:
            count[False] += 1
            assert str(error) and len(str(error)) < 100_000

    with memory(700):
        one()
    return count


numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 1e-320, float("nan"), float("inf")])
)
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", ".", "..", "~", "~nobody/x", "{}", "**/{}", "/", "a\0b", "\ud800", "no", "auto", "unet", "name"]
    ),
)
keys = st.one_of(words, st.sampled_from(list(Config.model_fields)))
for _field in Config.model_fields.values():
    if hasattr(_field.annotation, "model_fields"):
        keys = keys | st.sampled_from(list(_field.annotation.model_fields))
leaves = st.none() | st.booleans() | numbers | words
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


def places(tree, path=()):
    """Yield the paths of all nodes of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def leaves_of(tree):
    """Yield the dotted key and the value of each leaf."""
    for path in places(tree):
        value = tree
        for key in path:
            value = value[key]
        if not isinstance(value, dict | list):
            yield ".".join(map(str, path)), value


@st.composite
def changed(draw, tree, most=3):
    """Draw a copy of `tree` with nodes replaced, removed, renamed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        *above, last = draw(st.sampled_from(list(places(tree)) or [("x",)]))
        node = tree
        for key in above:
            node = node[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if how == "replace" or not isinstance(node, dict):
            node[last] = draw(trees)
        elif how == "add":
            node[draw(keys)] = draw(trees)
        else:
            value = node.pop(last)
            if how == "rename":
                node[draw(keys)] = value
    return tree


@st.composite
def damaged(draw, data, most=4):
    """Draw a copy of `data` with bytes changed, removed, added or repeated."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        # Half of the changes are near the start, where headers are.
        place = draw(st.integers(0, min(400, len(data))) | st.integers(0, len(data)))
        how = draw(st.sampled_from(["change", "remove", "add", "cut", "repeat"]))
        if how == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif how == "remove":
            del data[place : place + draw(st.integers(1, 20))]
        elif how == "add":
            data[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif how == "cut":
            del data[place:]
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
    return bytes(data)


def use(config):
    """Assert that a configuration that is written and read back is unchanged."""
    text = to_yaml(config)
    if HIDDEN not in text:
        assert to_yaml(config_from(parse_yaml(text, "written"))) == text


@TIMES
def test_random_trees_as_a_configuration_are_accepted_or_rejected(times):
    sections = st.dictionaries(keys, trees, max_size=4)
    attempt(sections, 150 * times, lambda tree: use(config_from(tree)))


@TIMES
def test_a_randomly_changed_configuration_is_accepted_or_rejected(times):
    count = attempt(changed(read_mapping(DEMO)), 200 * times, lambda tree: use(config_from(tree)))
    assert min(count.values()) > 10 * times


@TIMES
def test_random_overrides_are_accepted_or_rejected(times):
    valid = dict(leaves_of(config_from(read_mapping(DEMO)).model_dump(mode="json")))
    key = st.sampled_from(list(valid)) | st.lists(keys, min_size=1, max_size=3).map(".".join)
    flow = trees.map(lambda tree: yaml.safe_dump(tree, default_flow_style=True))
    value = st.sampled_from(["1", "0.5", "true", "null", "5e-4", "photos", ""]) | st.text(max_size=20) | flow
    same = st.sampled_from([f"{key}={json.dumps(value)}" for key, value in valid.items()])
    override = same | st.builds("{}={}".format, key, value) | st.text(max_size=30)
    lists = st.lists(override, min_size=1, max_size=2)
    count = attempt(lists, 150 * times, lambda given: use(load_config(None, given)))
    assert min(count.values()) > 5 * times


@TIMES
def test_random_bytes_as_a_configuration_are_accepted_or_rejected(times, tmp_path):
    file = tmp_path / "fuzz.yaml"

    def load(data):
        file.write_bytes(data)
        use(load_config(file))

    syntax = st.lists(
        st.sampled_from(
            [*"[]{}:,-?&*!|>'\"%@`#\n\t ~.<=0189axe_", "&a ", "*a", "<<: ", "!!int ", "---\n", "0x", "\xff"]
        )
    )
    attempt(st.binary(max_size=200) | syntax.map("".join).map(str.encode), 150 * times, load)
    count = attempt(damaged(DEMO.read_bytes()), 300 * times, load)
    assert min(count.values()) > 5 * times


@TIMES
def test_random_bytes_as_weights_are_accepted_or_rejected(times, tmp_path):
    arguments = {"depth": 3, "width": 8}
    model = build_model("dncnn", arguments, 3)
    described = json.dumps({"name": "dncnn", "arguments": arguments})
    file = write(tmp_path / "weights.safetensors", model, model=described)
    restorer.load(file)
    sound, archive = file.read_bytes(), io.BytesIO()
    torch.save(model.state_dict(), archive)
    length = 8 + int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8:length])

    def load(data):
        file.write_bytes(data)
        restorer.load(file)

    def load_header(tree):
        text = json.dumps(tree).encode()
        load(len(text).to_bytes(8, "little") + text + sound[length:])

    def load_metadata(parts):
        stored = dict(zip(("model", "data", "metrics"), map(json.dumps, parts), strict=True))
        load_header({**header, "__metadata__": {**header["__metadata__"], **stored}})

    stored = [json.loads(header["__metadata__"][name]) for name in ("model", "data", "metrics")]
    assert attempt(st.binary(max_size=300), 30 * times, load)[True] == 0
    assert attempt(damaged(archive.getvalue()), 30 * times, load)[True] == 0
    attempt(damaged(sound), 100 * times, load)
    attempt(changed(header), 100 * times, load_header)
    metadata = st.one_of(changed(stored).filter(lambda parts: len(parts) == 3), st.tuples(trees, trees, trees))
    attempt(metadata, 100 * times, load_metadata)


@pytest.fixture(scope="module")
def commit(tmp_path_factory):
    """Configuration, state and accelerator of a tiny run, and the files of one of its commits."""
    root = tmp_path_factory.mktemp("commit")
    photos = make_photos(root / "photos", 4)
    tree = small_config(photos, photos, root, train={"epochs": 2, "ema_decay": 0.9})
    tree["model"] = {"name": "dncnn", "depth": 3, "width": 8}
    config = config_from(tree)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    state = setup_model_and_optimizer(config, accelerator, 2)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    extra = {
        "config": config.model_dump(mode="json"), "epochs": 2, "global_batches": [8], "precision": "no",
        "wandb_id": None,
        "data": {"train": {"images": 4, "names": "a"}, "val": {"images": 4, "names": "b"}},
    }  # fmt: skip
    files = collect(state, state.epoch_sums, accelerator, extra, HostCopy()).files()
    return config, state, accelerator, {name: b"".join(parts) for name, parts in files.items()}


def resume(commit, folder, files):
    """Continue from a commit of these files whose sha256 sums are correct."""
    config, state, accelerator, _ = commit
    write_commit(folder / "checkpoints", 1, 0, files)
    (folder / "status.json").write_text("{}")
    start = find_resume_point(folder, config, False, [], "no", lambda _: None)
    if start.counters["epoch"] <= config.train.epochs:  # the condition under which training loads the commit
        load_commit(start.commit, state, accelerator, 2)


@TIMES
def test_changed_states_with_correct_sums_are_accepted_or_rejected(times, commit, tmp_path):
    files = commit[3]
    resume(commit, tmp_path, files)

    def resume_with(name):
        return lambda data: resume(commit, tmp_path, {**files, name: data})

    state = changed(json.loads(files["state.json"])).map(lambda tree: json.dumps(tree).encode())
    count = attempt(state, 100 * times, resume_with("state.json"))
    assert min(count.values()) > 5 * times
    attempt(damaged(files["state.json"]), 40 * times, resume_with("state.json"))
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        count = attempt(damaged(files[name], 1), 30 * times, resume_with(name))
        assert count[False] > 5 * times
    for name in files:  # missing
        others = st.just({key: data for key, data in files.items() if key != name})
        attempt(others, 1, partial(resume, commit, tmp_path))


@TIMES
def test_damaged_commits_are_accepted_or_rejected(times, commit, tmp_path):
    files = commit[3]
    resume(commit, tmp_path, files)
    folder = tmp_path / "checkpoints" / "step-00000001"

    def load_from(path):
        def load(data):
            path.write_bytes(data)
            start = find_resume_point(tmp_path, commit[0], False, [], "no", lambda _: None)
            load_commit(start.commit, commit[1], commit[2], 2)

        return load

    for path in sorted(folder.iterdir()):
        sound, load = path.read_bytes(), load_from(path)
        count = attempt(damaged(sound), 25 * times, load)
        assert path.name == "COMMIT.json" or count[False] > 15 * times
        if path.name == "COMMIT.json":
            attempt(changed(json.loads(sound)).map(lambda tree: json.dumps(tree).encode()), 60 * times, load)
        load(sound)


def test_control_libraries_alone_and_unchecked_states_raise_other_errors(commit, tmp_path, monkeypatch):
    with pytest.raises(yaml.YAMLError):
        attempt(damaged(DEMO.read_bytes()), 100, yaml.safe_load)
    with pytest.raises(SafetensorError):
        attempt(damaged(commit[3]["model.safetensors"]), 100, safetensors.torch.load)
    monkeypatch.setattr(checkpoint._Counters, "model_validate", lambda _: None)

    def resume_state(tree):
        resume(commit, tmp_path, {**commit[3], "state.json": json.dumps(tree).encode()})

    with pytest.raises((TypeError, KeyError, AttributeError)):
        attempt(changed(json.loads(commit[3]["state.json"])), 200, resume_state)
