"""YAML and overrides become a checked configuration; all mistakes are reported at once, with key and remedy."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from runs import ROOT, clean_environment

from accel_restore.config.explain import BASICSR_KEYS
from accel_restore.config.load import config_from, load_config, shipped, to_yaml
from accel_restore.config.optim import OPTIMIZER_SECTIONS, SCHEDULE_SECTIONS, SGD, Exponential
from accel_restore.config.schema import Model
from accel_restore.data.degradations.pipeline import DEGRADATIONS
from accel_restore.errors import UserError
from accel_restore.registry import LOSSES, METRICS, MODELS
from accel_restore.train import parse_arguments

LEAST = {"data": {"train": {"gt": "photos"}}}
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def problems(*overrides: str, **sections: dict) -> list[str]:
    """Return the lines of the configuration's error, without the title."""
    with pytest.raises(UserError) as caught:
        config_from({**LEAST, **sections}, overrides)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


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


def test_a_key_without_a_value_is_answered_with_the_way_to_write_it():
    assert problems("train.epochs", "5") == [
        "train.epochs: has no value; write train.epochs=VALUE, without spaces",
        "'5': is not an override; write key=value, such as data.batch_size=4",
    ]


def test_a_mistake_on_the_command_line_is_not_attributed_to_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {train: {gt: photos}}\n")

    def describe_error(*overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load_config(file, overrides)
        return str(caught.value).splitlines()

    for overrides in (["optimizer.lrr=1"], ["train.epochs=x"], ["nothing"], ["data.train={inptu: a}"]):
        assert describe_error(*overrides)[0].startswith("command line (key=value): ") and "mine.yaml" not in "".join(
            describe_error(*overrides)
        )
    file.write_text("data: {train: {gt: photos}}\nmodle: {name: unet}\noptimizer: {lr: 0.1}\n")
    title, first, second = describe_error("optimizer.lrr=1")
    assert title == f"{file} and the command line: 2 errors in the configuration"
    assert first.startswith("  - optimizer.lrr: unknown key") and first.endswith("(on the command line)")
    assert second.startswith("  - modle: unknown key") and "command line" not in second
    assert describe_error("optimizer.lr=0.2")[0] == f"{file}: 1 error in the configuration"


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("model.name=unett", MODELS), ("loss.l2=1", LOSSES), ("data.degradation=[{name: blur}]", DEGRADATIONS),
        ("optimizer.name=adamm", OPTIMIZER_SECTIONS), ("scheduler.name=cosin", SCHEDULE_SECTIONS),
        ("train.mixed_precision=fp8", ["no", "bf16", "fp16", "auto"]),
        ("validation.monitor=lpip", ["loss", *METRICS]),
    ],
)  # fmt: skip
def test_an_unknown_choice_lists_all_choices(override, choices):
    (line,) = problems(override)
    listed = line.split("choose one of: ")[1].split(";")[0].split(", ")
    assert listed == list(choices)


def test_basicsr_keys_are_answered_with_the_corresponding_keys():
    text = "\n".join(problems("total_iter=1000", "train.optim_g=adam", "data.gt_size=64"))
    for former, key in (("total_iter", "train.max_steps"), ("optim_g", "optimizer"), ("gt_size", "data.patch_size")):
        assert f"{former}: unknown key; BasicSR's {former} corresponds to {key}" in text
    sections = yaml.safe_load(to_yaml(config_from({**LEAST, "loss": {"perceptual": {}}})))
    for key in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", " ".join(BASICSR_KEYS.values())):
        if "." in key or key in sections:
            section, _, rest = key.partition(".")
            assert section in sections and (not rest or rest in sections[section]), key
    table = (ROOT / "configs" / "README.md").read_text().split("| BasicSR | accel_restore |\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(BASICSR_KEYS)


def test_a_dotted_import_path_is_answered_with_the_path_with_a_colon():
    assert problems("model.name=my.nets.Net")[0].endswith("; an import path is written 'my.nets:Net'")
    assert problems("loss={my.loss: 1}")[0].endswith("; an import path is written 'my:loss'")
    assert problems("data.degradation=[{name: my.noise}]")[0].endswith("; an import path is written 'my:noise'")
    for name in ("unett", "my/nets.py", "my..Net"):
        assert "import path" not in problems(f"model.name={name}")[0]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.lr=0", "optimizer.lr"), ("optimizer.lr=true", "optimizer.lr"),
        ("optimizer.lr=.inf", "optimizer.lr"), ("optimizer.lr='0.1'", "optimizer.lr"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1"), ("optimizer=5", "optimizer"),
        ("data.train=5", "data.train"), ("data.train={input: noisy}", "data.train"),
        ("data.channels=2", "data.channels"), ("data.batch-size=2", "data.batch-size"), ("loss.l1=-1", "loss.l1"),
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
        with pytest.raises(UserError, match="cannot be read"):
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


def test_a_changed_name_forgets_all_that_the_file_says_about_the_former_choice():
    tree = {
        **LEAST, "model": {"name": "unet", "width": 8}, "optimizer": {"name": "adamw", "lr": 0.5, "betas": [0.5, 0.6]},
        "scheduler": {"name": "step", "step_size": 3, "gamma": 0.1, "warmup_epochs": 9},
    }  # fmt: skip
    overrides = ["model.depth=5", "model.name=dncnn", "optimizer.name=sgd", "optimizer.momentum=0.9",
                 "scheduler.name=exponential"]  # fmt: skip
    config = config_from(tree, overrides)
    assert config.model.arguments == {"depth": 5}
    assert config.optimizer == SGD(momentum=0.9) and config.scheduler == Exponential()
    assert config_from(tree, ["model.name=unet"]).model.arguments == {"width": 8}
    assert config_from(tree, ["optimizer.name=sgd", "optimizer.name=adamw"]).optimizer.lr == 0.5  # the last one wins
    assert config_from(tree, ["optimizer={name: adam, lr: 3}", "optimizer.name=sgd"]).optimizer == SGD()
    assert tree["optimizer"]["lr"] == 0.5


def test_a_changed_name_in_a_list_of_steps_forgets_the_arguments_of_the_former_step():
    steps = [{"name": "gaussian_noise", "sigma": 1}, {"name": "choice", "of": [{"name": "jpeg", "quality": 5}]}]
    tree = {"data": {"train": {"gt": "a"}, "degradation": steps}}
    overrides = ["data.degradation.0.name=quantize", "data.degradation.1.of.0.name=gaussian_noise",
                 "data.degradation.1.of.0.sigma=7"]  # fmt: skip
    first, second = config_from(tree, overrides).data.degradation
    assert (first.name, first.arguments) == ("quantize", {})
    assert second.arguments == {"of": [{"name": "gaussian_noise", "sigma": 7}]}


def test_a_name_for_the_model_of_a_checkpoint_keeps_the_checkpoint():
    tree = {**LEAST, "model": {"checkpoint": "a.pth"}}
    for name in MODELS:
        model = config_from(tree, [f"model.name={name}"]).model
        assert (model.name, model.checkpoint) == (name, "a.pth")
    tree = {**LEAST, "model": {"name": "unet", "checkpoint": "a.pth"}}
    assert config_from(tree, ["model.name=dncnn"]).model.checkpoint is None
    assert config_from({**LEAST, "run": {"name": "a", "seed": 5}}, ["run.name=b"]).run.seed == 5


CHOICES = {
    **{("optimizer", name): section() for name, section in OPTIMIZER_SECTIONS.items()},
    **{("scheduler", name): section() for name, section in SCHEDULE_SECTIONS.items()},
    **{("model", name): Model(name=name) for name in MODELS},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_another_choice_than_a_recipes_has_its_own_defaults(path):
    recipe = load_config(path)
    for (section, name), expected in CHOICES.items():
        config = load_config(path, [f"{section}.name={name}", "validation.every_epochs=1"])
        same = getattr(recipe, section).name == name
        assert getattr(config, section) == (getattr(recipe, section) if same else expected), (section, name)


@pytest.mark.parametrize("override", ["model.name=unet", "model.name='unet'"])
def test_an_unchanged_name_keeps_the_arguments(override):
    former = {"width": 8} if override == "model.name=unet" else {"name": "unet", "width": 8}
    assert config_from({**LEAST, "model": former}, [override]).model.arguments == {"width": 8}


OFF = ["no", "off", "false", "False", "none", "None", "null", "~", "'off'", ""]
WITH_OFF = {
    "tracking.wandb": "disabled", "train.mixed_precision": "no", "run.resume": "never", "data.augment": [],
    "validation.metrics": [], "data.stages": [], "train.freeze": [], "optimizer.no_decay": [], "data.mixup": None,
    "train.max_grad_norm": None, "train.ema_decay": None, "validation.tile": None, "checkpoint.every_steps": None,
    "data.max_images": None, "data.val": None,
}  # fmt: skip


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("key", "value"), WITH_OFF.items())
def test_every_key_that_can_be_off_accepts_every_word_for_it(key, value, tmp_path):
    for word in OFF:
        assert value_at(config_from(LEAST, [f"{key}={word}"]), key) == value, word
    section, _, name = key.partition(".")
    file = tmp_path / "off.yaml"
    file.write_text(f"{'' if section == 'data' else 'data: {train: {gt: a}}'}\n{section}:\n  {name}: off\n"
                    f"{'  train: {gt: a}' if section == 'data' else ''}\n")  # fmt: skip
    assert value_at(load_config(file), key) == value


def test_true_means_the_default_choice_where_there_is_one():
    for word in ("true", "yes", "on"):
        assert config_from(LEAST, [f"tracking.wandb={word}"]).tracking.wandb == "auto"
        assert config_from(LEAST, [f"run.resume={word}"]).run.resume == "auto"
    assert problems("train.mixed_precision=true") == [
        "train.mixed_precision: must be 'no', 'bf16', 'fp16' or 'auto', not True"
    ]


@pytest.mark.parametrize("text", ["007", "2024", "1e3", "5e-4", "1_000", "12:30", ".5"])
def test_a_text_on_the_command_line_may_look_like_a_number(text):
    keys = ["run.name", "data.train.gt", "model.checkpoint", "run.resume"]
    for key in [*keys, *(["tracking.project"] if ":" not in text else [])]:  # W&B's projects have no colon
        assert value_at(config_from(LEAST, [f"{key}={text}"]), key) == text
    assert config_from(LEAST, ["run.name=off"]).run.name == "off"
    assert problems(run={"name": 12}) == ["run.name: must be text, not 12; put it in quotes: name: '12'"]


SUGGESTED = {
    "optimizer.lrr": "optimizer.lr", "lr": "optimizer.lr", "train.lr": "optimizer.lr", "batch_size": "data.batch_size",
    "train.batch_size": "data.batch_size", "train.epoch": "train.epochs", "epochs": "train.epochs", "modle": "model",
    "optimiser": "optimizer", "scheduler.warmup": "scheduler.warmup_epochs", "data.patch": "data.patch_size",
    "patch": "data.patch_size",
    "data.train.inptu": "data.train.input", "validation.metric": "validation.metrics", "name": "run.name",
    "data.gt": "data.train.gt",
    "learning_rate": "optimizer.lr", "data.num_workers": "data.num_threads", "train.globalbatchsize":
    "train.global_batch_size", "tracking.wandbb": "tracking.wandb",
    "checkpoint.every_epoch": "checkpoint.every_epochs",
    "scheduler.epochs": "train.epochs", "run.sed": "run.seed",
}  # fmt: skip
NOT_SUGGESTED = [
    "scheduler.per_step", "validation.every_steps", "scheduler.T_max", "checkpoint.frequency", "tracking.comet",
    "foo", "gpus", "run.tags", "data.test", "train.debug", "x", "optimizer.betas2", "scheduler.power", "k" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize(("key", "guess"), SUGGESTED.items())
def test_a_misspelt_or_misplaced_key_is_answered_with_the_right_one(key, guess):
    (line,) = problems(f"{key}=1")
    assert line == f"{key}: unknown key; did you mean '{guess}'?"


@pytest.mark.parametrize("key", NOT_SUGGESTED)
def test_a_key_that_is_near_no_other_gets_no_suggestion(key):
    (line,) = problems(f"{key}=1", optimizer={"name": "sgd"})
    assert ("did you mean" not in line and "known keys: " in line) or len(key) > 500


@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("optimizer.name=adamm", "adam"), ("scheduler.name=cosin", "cosine"), ("scheduler.name=none", None),
        ("scheduler.name=poly", None), ("scheduler.name=one_cycle", None), ("optimizer.name=lion", None),
        ("model.name=nafnett", "nafnet"), ("model.name=swinir", None), ("loss.l2=1", None), ("loss.msse=1", "mse"),
        ("train.mixed_precision=fp8", None), ("train.mixed_precision=bf61", "bf16"),
        ("data.degradation=[{name: noise}]", None), ("data.degradation=[{name: jpg}]", "jpeg"),
        ("data.augment=[hflop]", "hflip"), ("data.augment=[flip]", None), ("tracking.wandb=ofline", "offline"),
    ],
)  # fmt: skip
def test_a_choice_is_suggested_only_if_it_is_near(override, guess):
    (line,) = problems(override)
    assert ("did you mean" in line) is (guess is not None) and (guess is None or f"did you mean '{guess}'?" in line)


@pytest.mark.parametrize(("section", "name"), [("model", "dncnn"), ("optimizer", "sgd"), ("scheduler", "step")])
def test_a_name_in_place_of_a_section_is_answered_with_the_key_of_the_name(section, name):
    (line,) = problems(f"{section}={name}")
    assert line == f"{section}: is a section; write {section}.name={name}, or {section}: {{name: {name}}} in a file"
    config_from(LEAST, [f"{section}.name={name}"])


@pytest.mark.parametrize("value", ["null", "false", "[]", "off"])
def test_a_degradation_that_is_off_is_refused_with_a_remedy(value):
    (line,) = problems(f"data.degradation={value}")
    assert line.startswith("data.degradation: needs at least one step; remove the key")


def test_a_key_below_a_value_is_answered_with_the_key_of_the_value():
    for key, remedy in (("train.epochs", "VALUE"), ("run.name", "VALUE"), ("loss.l1", "{...}")):
        (line,) = problems(f"{key}=5", f"{key}.x=5")
        assert line.endswith(f"not a section; write {key}={remedy}")


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


def test_a_key_of_another_choice_is_not_suggested_again():
    with pytest.raises(UserError, match=r"optimizer\.betas: unknown key; known keys: .*momentum"):
        config_from({"data": {"train": {"gt": "x"}}, "optimizer": {"name": "sgd", "betas": [0.9, 0.9]}})


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
