"""YAML and overrides become a checked configuration; all mistakes are reported at once, with key and remedy."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from configurations import LEAST, problems, value_at
from runs import ROOT, clean_environment

from accel_restore.config.load import config_from, load_config, shipped, to_yaml
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS
from accel_restore.data.degradations.pipeline import DEGRADATIONS
from accel_restore.errors import UserError
from accel_restore.models.architectures import model_names
from accel_restore.registry import LOSSES, METRICS
from accel_restore.train import parse_arguments

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=clean_environment())


def test_all_mistakes_are_reported_at_once_with_suggestions():
    found = problems(
        "optimizer.lrr=1", "scheduler.name=cosin", "train.epochs=x", "lr=3", "data.batch_size=2.5", "nothing",
        "loss.l2=1", "model.name=unett", "data.augment=[hflop]",
    )  # fmt: skip
    assert len(found) == 9
    text = "\n".join(found)
    assert "optimizer.lrr: unknown key; did you mean 'optimizer.lr'?" in text
    assert "lr: unknown key; did you mean 'optimizer.lr'?" in found
    assert problems("batch_size=4") == ["batch_size: unknown key; did you mean 'data.batch_size'?"]
    assert "data.augment.0: unknown choice 'hflop'; choose one of: hflip, vflip, rot90" in text
    assert any(line.startswith("train.epochs: ") and "'x'" in line for line in found)
    assert any(line.startswith("data.batch_size: ") and "2.5" in line for line in found)
    assert "'nothing': is not an override" in text


def test_a_mistake_on_the_command_line_is_not_attributed_to_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {train: {gt: photos}}\n")

    def describe_error(*overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load_config(file, overrides)
        return str(caught.value).splitlines()

    for overrides in (
        ["optimizer.lrr=1"],
        ["optimiser.lr=1"],
        ["train.epochs=x"],
        ["nothing"],
        ["data.train={inptu: a}"],
    ):
        assert describe_error(*overrides)[0].startswith("command line (key=value): ") and "mine.yaml" not in "".join(
            describe_error(*overrides)
        )
    file.write_text("data: {train: {gt: photos}}\nmodle: {name: unet}\noptimizer: {lr: 0.1}\n")
    title, first, second = describe_error("optimizer.lrr=1")
    assert title == f"{file} and the command line: 2 errors in the configuration"
    assert first.startswith("  - optimizer.lrr: unknown key") and first.endswith("(on the command line)")
    assert second.startswith("  - modle: unknown key") and "command line" not in second
    for override in ("optimizer.lr=0.2", "modle.width=4"):
        assert describe_error(override)[0] == f"{file}: 1 error in the configuration"


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("model.name=unett", model_names()), ("loss.l2=1", LOSSES), ("data.degradation=[{name: blur}]", DEGRADATIONS),
        ("optimizer.name=adamm", OPTIMIZER_SECTIONS), ("scheduler.name=cosin", SCHEDULE_SECTIONS),
        ("train.mixed_precision=fp8", ["no", "bf16", "fp16", "auto"]),
        ("train.compile=fast", ["false", "true", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"]),
        ("validation.monitor=lpip", ["loss", *METRICS]),
    ],
)  # fmt: skip
def test_an_unknown_choice_lists_all_choices(override, choices):
    (line,) = problems(override)
    listed = line.split("choose one of: ")[1].split(";")[0].split(", ")
    assert listed == list(choices)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.lr=0", "optimizer.lr"), ("optimizer.lr=true", "optimizer.lr"),
        ("optimizer.lr=.inf", "optimizer.lr"), ("optimizer.lr='0.1'", "optimizer.lr"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1"), ("optimizer=5", "optimizer"),
        ("data.train=5", "data.train"), ("data.train={input: noisy}", "data.train"),
        ("data.channels=0", "data.channels"), ("data.batch-size=2", "data.batch-size"), ("loss.l1=-1", "loss.l1"),
        ("loss={}", "loss"), ("run.seed=-1", "run.seed"), ("run.name=a/b", "run.name"),
        ("train.mixed_precision=true", "train.mixed_precision"), ("validation.metrics=[psnr]", "validation.monitor"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_rejected_with_its_dotted_key(override, key):
    monitored = {"validation": {"monitor": "ssim"}} if key == "validation.monitor" else {}
    (line,) = problems(override, **monitored)
    path, _, message = line.partition(": ")
    assert path == key or (path == key.rpartition(".")[0] and message.startswith(key.rpartition(".")[2]))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["scheduler.min_lr=1"], "scheduler.min_lr"),
        (["scheduler.name=plateau", "validation.every_epochs=2"], "scheduler.name"),
        (["validation.y_channel=true", "data.channels=1"], "validation.y_channel"),
    ],
)
def test_contradictory_sections_are_rejected(overrides, key):
    (line,) = problems(*overrides)
    assert line.startswith(f"{key}: ")


def test_global_batch_size_and_accumulation_are_not_both_set():
    (line,) = problems("train.global_batch_size=8", "train.gradient_accumulation_steps=2")
    assert line.startswith("train: global_batch_size and gradient_accumulation_steps are both set")
    assert config_from(LEAST, ["train.global_batch_size=8"]).train.gradient_accumulation_steps is None
    assert problems("train.gradient_accumulation_steps=null")


@pytest.mark.parametrize(
    "text",
    ["run: {name: [", "run: 1\nrun: 2", "- a", "text", "!!python/object/apply:os.system ['touch hostile']", "[a]: 1",
     "run: {name: !!timestamp x}", "a: \x00", "2001-99-99: 1"],
)  # fmt: skip
def test_a_file_that_is_not_a_configuration_is_rejected_with_its_name(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_config(file)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_missing_and_unreadable_files_are_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no\.yaml: no such configuration file"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match=r"cannot be read|is not text in UTF-8"):
            load_config(path)


def test_duplicate_keys_are_rejected_with_their_line(tmp_path):
    text = "data: {train: {gt: a}}\ntrain: {epochs: 1}\ntrain: {epochs: 2}\n"
    assert yaml.safe_load(text)["train"] == {"epochs": 2}  # the control
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(UserError, match=r"line 3.*duplicate key 'train'"):
        load_config(tmp_path / "twice.yaml")


def test_exponents_without_a_decimal_point_are_numbers():
    assert yaml.safe_load("5e-4") == "5e-4"  # the control
    config = config_from(LEAST, ["optimizer.lr=5e-4", "scheduler.min_lr=1E-7", "loss.l1=.5e1"])
    assert (config.optimizer.lr, config.scheduler.min_lr, config.loss["l1"]) == (5e-4, 1e-7, 5.0)


def test_a_mapping_replaces_the_whole_section():
    tree = {"data": {"train": {"input": "a", "gt": "b"}}, "train": {"epochs": 3, "ema_decay": 0.9}}
    config = config_from(tree, ["data.train={gt: c}", "train={epochs: 4}"])
    assert config.data.train.gt == "c" and config.data.train.input is None
    assert config.train.epochs == 4 and config.train.ema_decay is None
    assert config_from(tree, ["data.train.gt=c"]).data.train.input == "a"  # the control: a key changes one value
    assert tree["data"]["train"] == {"input": "a", "gt": "b"}


def test_later_overrides_win_and_list_elements_are_named_by_index():
    noise = {"name": "gaussian_noise", "sigma": 1}
    tree = {"data": {"train": {"gt": "a"}, "degradation": [noise, {**noise}]}}
    config = config_from(tree, ["data.degradation.1.sigma=5", "data.degradation.1.sigma=[5, 50]", "run.name=x"])
    assert [step.arguments["sigma"] for step in config.data.degradation] == [1, [5, 50]]


def test_an_override_changes_only_one_use_of_a_yaml_alias(tmp_path):
    (tmp_path / "alias.yaml").write_text("data: {train: &same {gt: a}, val: *same}\n")
    data = load_config(tmp_path / "alias.yaml", ["data.val.gt=b"]).data
    assert (data.train.gt, data.val.gt) == ("a", "b")


@pytest.mark.parametrize("index", ["2", "-1", "x", "²"])
def test_an_index_outside_the_list_is_rejected(index):
    noise = {"name": "gaussian_noise", "sigma": 1}
    (line,) = problems(f"data.degradation.{index}.sigma=5", data={**LEAST["data"], "degradation": [noise, noise]})
    assert "is not an element of this list of 2" in line


@pytest.mark.parametrize("text", ["007", "2024", "1e3", "5e-4", "1_000", "12:30", ".5"])
def test_a_text_on_the_command_line_may_look_like_a_number(text):
    keys = ["run.name", "data.train.gt", "model.checkpoint", "run.resume"]
    for key in [*keys, *(["tracking.project"] if ":" not in text else [])]:  # W&B's projects have no colon
        assert value_at(config_from(LEAST, [f"{key}={text}"]), key) == text
    assert config_from(LEAST, ["run.name=off"]).run.name == "off"
    assert problems(run={"name": 12}) == ["run.name: must be text, not 12; put it in quotes: name: '12'"]


@pytest.mark.parametrize("value", ["null", "false", "[]", "off"])
def test_a_degradation_that_is_off_is_refused_with_a_remedy(value):
    (line,) = problems(f"data.degradation={value}")
    assert line.startswith("data.degradation: needs at least one step; remove the key")


def test_flags_and_overrides_may_come_in_any_order():
    orders = ["--cpu a=1 --config f.yaml b=-2 --audit", "a=1 b=-2 --audit --cpu --config f.yaml"]
    for order in orders:
        options = parse_arguments(order.split())
        assert (options.cpu, options.audit, options.overwrite) == (True, True, False)
        assert (options.config, options.overrides) == ("f.yaml", ["a=1", "b=-2"])


@pytest.mark.parametrize("scheduler", SCHEDULE_SECTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZER_SECTIONS)
def test_a_dumped_configuration_reads_back_equal(optimizer, scheduler, tmp_path):
    overrides = [
        f"optimizer.name={optimizer}", f"scheduler.name={scheduler}", "optimizer.lr=3e-5", "train.global_batch_size=8",
        "loss={l1: 1, charbonnier: {weight: 0.5, eps: 1e-4}}", "data.train.gt=[ä.png, b.png]", "model.width=8",
    ]  # fmt: skip
    config = config_from(LEAST, overrides)
    (tmp_path / "dumped.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize("name", ["5e-4", "12", "no", "1.0", "a: b", "ä"])
def test_a_run_name_that_looks_like_another_type_reads_back_equal(name, tmp_path):
    config = config_from({**LEAST, "run": {"name": name}})
    (tmp_path / "dumped.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "dumped.yaml").run.name == name


def test_config_command_prints_the_resolved_configuration():
    process = run("-m", "accel_restore.cli", "config", "optimizer.lr=5e-4", "--config", str(ROOT / "configs/demo.yaml"))
    assert process.returncode == 0
    assert config_from(yaml.safe_load(process.stdout)).optimizer.lr == 5e-4


def test_config_command_reports_mistakes_on_stderr_only():
    process = run("-m", "accel_restore.cli", "config", "optimizer.lrr=1", "foo=2")
    assert (process.returncode, process.stdout) == (2, "")
    assert "optimizer.lrr" in process.stderr and "foo" in process.stderr and "Traceback" not in process.stderr


def test_config_command_prints_the_json_schema():
    process = run("-m", "accel_restore.cli", "config", "--schema")
    assert process.returncode == 0
    assert {"run", "data", "model", "optimizer", "scheduler", "train"} <= set(json.loads(process.stdout)["properties"])


def test_mistakes_are_reported_before_torch_is_imported():
    code = "import sys; from accel_restore.config.load import load_config; load_config(); print('torch' in sys.modules)"
    assert run("-c", code).stdout == "False\n"
    process = run(str(ROOT / "accel_restore" / "train.py"), "--cpu", "optimizer.lrr=1")
    assert process.returncode == 2 and "did you mean 'optimizer.lr'?" in process.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path):
    assert to_yaml(load_config(path))


def test_a_loss_may_be_given_by_name_only():
    tree = {"data": {"train": {"gt": "photos"}}}
    assert config_from(tree, ["loss=mse"]).loss == {"mse": 1.0}
    with pytest.raises(UserError, match="unknown choice 'l3'; choose one of: l1, mse, charbonnier"):
        config_from(tree, ["loss=l3"])


def test_stages_must_be_in_order_and_fit_the_scale():
    (line,) = problems("data.stages=[{until_epoch: 5, patch_size: 32}, {until_epoch: 5}]")
    assert line == "data: stages end at epochs 5, 5; until_epoch must increase from stage to stage"
    (line,) = problems("data.stages=[{until_epoch: 5, patch_size: 31}]", "data.scale=2")
    assert line == "data: stages.0.patch_size is 31, which is not a multiple of scale 2"
    lines = problems("data.stages=[{until_epochs: 5}]")
    assert "data.stages.0.until_epochs: unknown key; did you mean 'data.stages.0.until_epoch'?" in lines
    data = config_from(LEAST, ["data.stages=[{until_epoch: 5, patch_size: 64}, {until_epoch: 9}]"]).data
    assert data.patch_sizes == {"data.stages.0.patch_size": 64, "data.patch_size": 256}


@pytest.mark.parametrize("override", ["data.train={input: p/n, gt: p/c}", "data.train.gt=p/c"])
def test_the_demos_validation_images_are_forgotten_with_its_training_images(override):
    assert load_config(None, [override]).data.val is None
    assert load_config(None, [override, "data.val={gt: q}"]).data.val.gt == "q"
    assert load_config(None, ["data.batch_size=2"]).data.val is not None
    assert load_config(shipped("configs", "demo.yaml"), [override]).data.val is not None, "a file that is named"


@pytest.mark.parametrize(
    "given", [[-3e38, 3e38], [0, 3e38], [0, 1e-39], [1e39, 1.1e39], [-1e39, 0], [-2e38, 2e38], [1, 0], [0, 0]]
)
def test_a_range_by_which_float32_cannot_divide_is_refused_with_its_key(given):
    with pytest.raises(UserError, match=r"data\.range: the .*not \["):
        config_from({"data": {"train": {"gt": "x"}, "range": given}})


@pytest.mark.parametrize("given", [[-0.3, 2.2], [-1e38, 1e38], [0, 1e-37], [2e38, 2.9e38]])
def test_ranges_by_which_float32_can_divide_are_accepted(given):
    low, high = config_from({"data": {"train": {"gt": "x"}, "range": given}}).data.range
    values = (np.array(given, np.float32) - np.float32(low)) / np.float32(high - low)
    assert [low, high] == given and np.allclose(values, [0, 1])
