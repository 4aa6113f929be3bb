"""`accel-restore convert`: option files of other trainers become configurations, and no option is lost unseen."""

import copy
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from runs import ROOT

from accel_restore.cli import main
from accel_restore.config.convert.check import settle
from accel_restore.config.convert.draft import leaves
from accel_restore.config.convert.options import convert
from accel_restore.config.convert.write import to_text
from accel_restore.config.load import config_from, load_config
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError
from accel_restore.registry import MODELS

FILES = {path.stem: path for path in sorted((ROOT / "tests" / "fixtures" / "option_files").glob("*.yml"))}
TREES = {name: parse_yaml(path.read_text(encoding="utf-8"), name) for name, path in FILES.items()}
KNOWN = {*MODELS, "esrgan", "compact", "swinir", "realplksr", "hat"}
PRESETS = {"hat": ["hat_s"]}
# Options that are read and need neither a key of their own nor a comment: what they say is said otherwise here.
SILENT = re.compile(
    r"network_g\.(num_out_ch|out_channels|upscale|num_grow_ch|dual_pixel_task|in_chans|inp_channels)"
    r"|network_d\.num_in_ch"
    r"|datasets\.\w+\.(type|filename_tmpl|blur_kernel_size2?|kernel_\w+|sinc_prob2?|blur_sigma2?|beta[gp]_range2?)"
    r"|datasets\.train\.(final_sinc_prob|final_kernel_range|gt_size)|gt_size"
    r"|(second_)?blur_prob2?|(resize|noise|poisson_scale|jpeg)_range2?|(resize|jpeg|gray_noise|gaussian_noise)_prob2?"
    r"|resize_mode_(list|prob)[23]?|high_order_degradation"
    r"|train\.scheduler\.(type|T_max|periods|restart_weights|gamma)"
    r"|train\.(\w+_opt|losses\.\d+)\.\w+(\.\w+)?|train\.mixing_augs\.\w+|val\.use_image|logger\.wandb\.project|amp_bf16"
)


def converted(tree, **given):
    return convert(
        tree,
        "options.yml",
        **{
            "known": KNOWN,
            "presets_of": lambda name: PRESETS.get(name, ()),
            "arguments_of": lambda name: None,
            **given,
        },
    )


def text_of(tree):
    draft = converted(tree)
    settle(draft, "options.yml")
    return to_text(draft, "options.yml", "accel-restore train --config mine.yaml")


def comments_of(text):
    return " ".join(re.sub(r"^# ?", "", line).strip() for line in text.splitlines() if line.startswith("#"))


def configuration_of(name, **given):
    return settle(converted(TREES[name], **given), name)


# Every option ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_option_is_carried_over_or_in_a_comment(name):
    draft = converted(TREES[name])
    settle(draft, name)
    comments = comments_of(to_text(draft, name, "accel-restore train"))
    carried = {option for options in draft.origins.values() for option in options}
    for option, _ in leaves(TREES[name]):
        is_carried = any(f"{option}.".startswith(f"{source}.") for source in carried)
        assert is_carried or f"{option}:" in comments or SILENT.fullmatch(option), option


@pytest.mark.parametrize("name", FILES)
def test_an_option_that_nobody_knows_is_in_a_comment(name):
    tree = copy.deepcopy(TREES[name])
    sections = [tree]
    for section in sections:
        sections += [value for value in section.values() if isinstance(value, dict)]
        sections += [
            item for value in section.values() if isinstance(value, list) for item in value if isinstance(item, dict)
        ]
    for place, section in enumerate(sections):
        section[f"unheard_of_{place}"] = f"value_{place}"
    draft = converted(tree, arguments_of=lambda model: {"depths"})
    settle(draft, name)
    text = to_text(draft, name, "accel-restore train")
    for place, section in enumerate(sections):
        is_argument = section is tree["network_g"] and ":" in str(draft.config["model"]["name"])
        is_argument |= section.keys() & {"conv5_4"} != set()  # layers of the perceptual loss, which may have any name
        is_argument |= section is tree["train"]["optim_g"] and ":" in draft.config.get("optimizer", {}).get("name", "")
        assert f"unheard_of_{place}: value_{place}" in (text if is_argument else comments_of(text)), section


@pytest.mark.parametrize("name", FILES)
def test_the_written_file_is_the_configuration_that_was_checked(name):
    draft = converted(TREES[name])
    config = settle(draft, name)
    assert config_from(parse_yaml(to_text(draft, name, "accel-restore train"), name)) == config


def replaced(tree, option, value):
    tree = copy.deepcopy(tree)
    *sections, last = option.split(".")
    place = tree
    for part in sections:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(last) if isinstance(place, list) else last] = value
    return tree


ODD = (
    None,
    "x",
    "",
    -1,
    0,
    2.5,
    True,
    False,
    [],
    [1],
    [{}],
    {"a": 1},
    1e308,
    math.inf,
    math.nan,
    2**62,
    "a\nb",
    ["x", 3],
)


@pytest.mark.parametrize("name", FILES)
def test_any_value_is_converted_or_refused_in_words(name):
    choose = random.Random(name)
    accepted = 0
    options = [option for option, _ in leaves(TREES[name])]
    for option in [*options, *{option.rpartition(".")[0] for option in options if "." in option}]:
        for value in choose.sample(ODD, 1):
            tree = replaced(TREES[name], option, value)
            try:
                draft = converted(tree)
                settle(draft, "options.yml")
            except UserError as error:
                assert "options.yml" in str(error)
                continue
            accepted += 1
            if choose.random() < 0.05:  # it takes most of the time
                config_from(parse_yaml(to_text(draft, "options.yml", "accel-restore train"), "mine.yaml"))
    assert accepted > len(options) / 2


# Values ---------------------------------------------------------------------------------------------------------------


def test_lengths_in_steps_are_exact():
    config = configuration_of("basicsr_edsr_x4")
    assert (config.train.max_steps, config.train.steps_per_epoch) == (300_000, 5000)
    assert config.scheduler.model_dump(include={"name", "milestones", "gamma"}) == {
        "name": "multistep", "milestones": [40, 50], "gamma": 0.5,
    }  # fmt: skip
    assert config.checkpoint.every_epochs == 2 and config.checkpoint.every_steps is None
    assert config.train.global_batch_size == 16 and config.data.batch_size == 8
    assert config.data.train.input == "photos/lr_x4/{}x4.*" and config.data.train.gt == "photos/hr/{}.*"
    assert config.validation.quantize and config.validation.y_channel and config.validation.crop_border == 4
    assert list(config.data.val) == ["Set5", "Set14"] and config.data.val["Set14"].gt == "set14/hr"
    assert config.optimizer.name == "adam" and config.optimizer.betas == (0.9, 0.99)
    assert config.model.name == "basicsr.archs.edsr_arch:EDSR" and config.model.arguments["num_block"] == 16


def test_lengths_that_are_no_whole_epochs_are_rounded_with_a_comment():
    text = text_of(TREES["redux_realplksr_x2"])
    config = configuration_of("redux_realplksr_x2")
    assert config.scheduler.milestones == [60, 121] and config.scheduler.warmup_epochs == 1
    comments = comments_of(text)
    assert "is 60, 120.5 epochs of 1000 steps, rounded to 60, 121" in comments
    assert "is 0.7 epochs of 1000 steps, rounded to 1" in comments
    assert "train.steps_per_epoch=100 validation.every_epochs=10" in comments


def test_crops_of_the_input_become_crops_of_gt_and_accumulation_is_kept():
    config = configuration_of("redux_realplksr_x2")
    assert config.data.patch_size == 192 and config.train.gradient_accumulation_steps == 4
    assert config.data.train.gt == ["photos/one/hr", "photos/two/hr"]
    assert config.train.mixed_precision == "bf16" and config.train.max_grad_norm == 1.0
    assert config.train.compile and not config.train.channels_last and config.train.deterministic
    assert config.model.name == "realplksr" and config.model.arguments["n_blocks"] == 12
    tree = replaced(TREES["redux_realplksr_x2"], "num_gpu", 3)
    assert settle(converted(tree), "x").train.global_batch_size == 8 * 4 * 3


def test_progressive_training_becomes_stages():
    config = configuration_of("restormer_derain")
    stages = [(s.until_epoch, s.patch_size, s.batch_size, s.global_batch_size) for s in config.data.stages]
    assert stages == [(23, 128, 8, 64), (39, 160, 5, 40), (51, 192, 4, 32), (60, 256, 2, 16), (69, 320, 1, 8)]
    assert (config.data.patch_size, config.data.batch_size, config.train.global_batch_size) == (384, 1, 8)
    assert config.scheduler.name == "cosine" and config.scheduler.hold_epochs == 23 and config.scheduler.min_lr == 1e-6
    assert config.data.mixup.probability == 0.5 and config.train.max_grad_norm == 0.01
    assert config.model.arguments["layer_norm"] == "with_bias" and not config.validation.quantize


def test_nafnets_habits_are_kept():
    config = configuration_of("nafnet_denoise")
    assert config.train.max_grad_norm == 0.01  # NAFNet's trainer clips without an option
    assert config.model.arguments == {
        "width": 16, "encoder_blocks": [1, 1, 2, 4], "middle_blocks": 6, "decoder_blocks": [1, 1, 1, 1],
    }  # fmt: skip
    assert config.loss == {"psnr": 1} and config.data.augment == []
    assert config.scheduler.name == "cosine" and config.scheduler.min_lr == 1e-7
    assert config.checkpoint.every_steps == 5000


def test_losses_keep_their_weights_and_charbonnier_its_curve():
    config = configuration_of("swinir_light_x2")
    assert config.loss["charbonnier"] == {"weight": 1.0, "eps": pytest.approx(1e-9**0.5)}
    assert config.loss["fft"] == 0.05
    assert configuration_of("realesrnet_x4").loss["charbonnier"]["eps"] == pytest.approx(1e-6)
    mixed = configuration_of("redux_realplksr_x2").loss
    assert mixed["l1"] == pytest.approx(1.9) and mixed["ms_ssim"] == pytest.approx(0.1)
    assert mixed["perceptual"]["layers"] == {"conv1_2": 0.1, "conv5_4": 1}
    small = replaced(TREES["redux_realplksr_x2"], "datasets.train.lq_size", 64)
    assert settle(converted(small), "x").loss["ssim"] == pytest.approx(0.1)  # ms_ssim needs 176 pixels


def test_adversarial_parts_are_kept_beside_the_others():
    draft = converted(TREES["basicsr_esrgan_x4"])
    config = settle(draft, "x")
    assert set(config.loss) == {"l1", "perceptual"} and config.loss["l1"] == 0.01
    assert config.model.name == "esrgan" and config.model.arguments == {"num_filters": 64, "num_blocks": 23}
    assert config.adversarial.discriminator.name == "vgg" and config.adversarial.loss == "relativistic"
    assert config.data.train.gt == "photos/hr_sub" and any("LMDB" in line for line in draft.todo)


def test_two_stages_of_degradation_are_built():
    pytest.importorskip("torch")
    from accel_restore.data.degradations.pipeline import build_degradation

    for name, kinds in (
        (
            "realesrnet_x4",
            ["choice", "choice", "choice", "jpeg", "choice", "choice", "choice", "random_order", "quantize"],
        ),
        ("redux_compact_otf_x4", ["choice", "jpeg", "choice", "random_order", "quantize"]),
    ):
        config = configuration_of(name)
        assert [step.name for step in config.data.degradation] == kinds
        build_degradation([(step.name, step.arguments) for step in config.data.degradation], config.data.scale)


def test_restarts_and_optimizers_of_libraries():
    config = configuration_of("swinir_light_x2")
    assert config.scheduler.name == "cosine_restarts" and config.scheduler.period == 50
    assert config.scheduler.warmup_epochs == 4
    assert "every cosine starts from the initial rate" in comments_of(text_of(TREES["swinir_light_x2"]))
    for name, optimizer in {"swinir_light_x2": "Adan", "redux_compact_otf_x4": "AdamP"}.items():
        assert converted(TREES[name]).config["optimizer"]["name"] == f"pytorch_optimizer:{optimizer}"


def test_arguments_that_a_model_does_not_have_are_comments():
    draft = converted(TREES["swinir_light_x2"], arguments_of=lambda name: {"depths", "embed_dim"})
    settle(draft, "x")
    assert set(draft.config["model"]) == {"name", "depths", "embed_dim", "checkpoint"}
    assert "network_g.mlp_ratio: 2" in comments_of(to_text(draft, "x", "y"))


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("HAT", {"name": "hat"}),
        ("hat_s", {"name": "hat", "preset": "hat_s"}),
        ("hat_xl", {"name": "hat"}),
        ("Mine", {"name": "mypackage.nets:Mine"}),
    ],
)
def test_networks_are_found_by_their_names(kind, model):
    tree = {**TREES["nafnet_denoise"], "network_g": {"type": kind}}
    assert converted(tree).config["model"] == model


def test_a_scale_or_channels_that_are_not_possible_are_comments():
    tree = replaced(TREES["swinir_light_x2"], "scale", 8)
    assert "scale: 8 (data.scale is 1, 2, 3 or 4)" in comments_of(text_of(tree))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("path.pretrain_network_d", "net_d.pth"),
        ("path.resume_state", "150000.state"),
        ("logger.wandb.resume_id", "abc"),
        ("train.use_moa", True),
        ("train.moa_augs", ["cutmix"]),
        ("lq_usm", True),
    ],
)
def test_an_option_that_is_set_and_has_no_counterpart_is_not_called_unneeded(option, value):
    tree = copy.deepcopy(TREES["redux_realplksr_x2"])
    tree["train"].update(use_moa=True)
    tree["lq_usm"] = False
    draft = converted(replaced(tree, option, value))
    lost = {name for note in draft.notes if note.kind == "not carried" for name in note.options}
    assert any(f"{name}.".startswith(f"{option}.") for name in lost)
    assert set(draft.config["loss"]) == {"l1", "ms_ssim", "perceptual"}


def test_losses_of_adversarial_recipes_are_carried_over():
    tree = copy.deepcopy(TREES["redux_realplksr_x2"])
    tree["train"]["ldl_opt"] = {"type": "HuberLoss", "loss_weight": 0.5}
    tree["train"]["losses"] = [
        {"type": "distsloss", "loss_weight": 0.25},
        {"type": "contextualloss", "loss_weight": 0.1, "band_width": 0.2},
        {"type": "FocalFrequencyLoss", "loss_weight": 1.0, "alpha": 2, "log_matrix": True},
    ]
    draft = converted(tree)
    losses = {name: draft.config["loss"].get(name) for name in ("ldl", "dists", "contextual", "focal_frequency")}
    assert losses == {
        "ldl": 0.5,
        "dists": {"weight": 0.25, "weights": "vgg16-397923af.pth"},
        "contextual": {"weight": 0.1, "weights": "vgg19-dcbb9e9d.pth", "bandwidth": 0.2},
        "focal_frequency": {"weight": 1.0, "alpha": 2.0, "log": True},
    }
    assert "the output of the EMA is not compared" in text_of(tree)


def test_a_value_that_the_configuration_refuses_is_a_comment():
    text = text_of(replaced(TREES["nafnet_denoise"], "train.ema_decay", 1.5))
    assert re.search(r"not carried: train.ema_decay: 1.5 \(.*less than 1", comments_of(text))
    assert "ema_decay" not in yaml.safe_load(text)["train"]


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_that_config_accepts(tmp_path, capsys):
    out = tmp_path / "mine.yaml"
    assert main(["convert", str(FILES["nafnet_denoise"]), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "data.train.gt: ./noise/train/gt is not on this machine" in said.err
    assert main(["config", "--config", str(out)]) == 0
    assert out.read_text(encoding="utf-8").splitlines()[1].startswith("# Start: accelerate launch")
    assert load_config(out).model.name == "nafnet"


def test_the_command_prints_without_an_output(capsys):
    assert main(["convert", str(FILES["restormer_derain"])]) == 0
    said = capsys.readouterr()
    assert config_from(yaml.safe_load(said.out)).model.name == "restormer" and "options" in said.err


def test_an_existing_file_is_replaced_only_on_request(tmp_path, capsys):
    out = tmp_path / "mine.yaml"
    out.write_text("mine", encoding="utf-8")
    given = ["convert", str(FILES["nafnet_denoise"]), "-o", str(out)]
    assert main(given) == 2 and out.read_text(encoding="utf-8") == "mine" and "--overwrite" in capsys.readouterr().err
    assert main([*given, "--overwrite"]) == 0 and out.read_text(encoding="utf-8") != "mine"


def test_the_option_file_itself_is_never_replaced(tmp_path, capsys):
    file = Path(shutil.copy(FILES["nafnet_denoise"], tmp_path / "options.yml"))
    before = file.read_text(encoding="utf-8")
    assert main(["convert", str(file), "-o", str(file), "--overwrite"]) == 2
    assert file.read_text(encoding="utf-8") == before and "is an input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data: {train: {gt: x}}\n", "already"),
        (b"network_g: {type: EDSR}\ndatasets: {test_1: {dataroot_gt: x}}\n", "no section train"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"some words\n", "must be a mapping"),
        (b"a: 1\n", "not an option file"),
        (b"\xff\xfe\x00\x01", "UTF-8"),
        (b"network_g: !!python/object:os.system x\n", "tag"),
        (b"a: &a [x, x, x]\nb: &b [*a, *a]\nnetwork_g: [*b\n", "not valid YAML"),
        (b"", "not an option file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, capsys, content, words):
    file, out = tmp_path / "options.yml", tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert main(["convert", str(file), "-o", str(out)]) == 2
    said = capsys.readouterr()
    assert words in said.err and "options.yml" in said.err and said.err.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize(("kind", "said"), [("AdamW_SF", "not needed"), ("SOAP_SF", "not carried")])
def test_a_schedule_free_optimizer_averages_the_weights_alone(kind, said):
    tree = copy.deepcopy(TREES["redux_realplksr_x2"])
    tree["train"] |= {"optim_g": {"type": kind, "lr": 1e-3, "schedule_free": True}, "ema_decay": 0.999}
    draft, is_free = converted(tree), said == "not needed"
    assert "schedule_free" not in draft.config["optimizer"]
    assert ("ema_decay" in draft.config["train"]) is not is_free
    comments = comments_of(text_of(tree))
    assert f"{said}: train.optim_g.schedule_free: true" in comments
    assert ("not carried: train.ema_decay: 0.999 (the optimizer is schedule-free" in comments) is is_free


@pytest.mark.parametrize("name", ["kair.json", "neosr.toml"])
def test_files_of_other_kinds_are_refused_by_their_kind(tmp_path, capsys, name):
    file = tmp_path / name
    file.write_text('{"netG": {}} // or name = "x"\n', encoding="utf-8")
    assert main(["convert", str(file)]) == 2
    said = capsys.readouterr()
    assert f"{name}: is a {file.suffix} file" in said.err and said.err.count("\n") == 1 and not said.out


def test_pairs_in_one_folder_are_to_do():
    tree = copy.deepcopy(TREES["basicsr_edsr_x4"])
    assert not any("same folder" in line for line in converted(tree).todo)
    tree["datasets"]["train"]["dataroot_lq"] = tree["datasets"]["train"]["dataroot_gt"]
    tree["datasets"]["train"].pop("filename_tmpl", None)
    assert any(line.startswith("data.train: input and gt are the same folder") for line in converted(tree).todo)


def test_reasons_fit_the_options():
    tree = copy.deepcopy(TREES["basicsr_edsr_x4"])
    tree["datasets"] |= {"val": None}
    tree["datasets"]["train"] |= {"task": "SR", "gt_size": None}
    tree["gt_size"] = 96
    comments = comments_of(text_of(tree))
    assert re.search(r"not carried: datasets\.train\.task: SR \(accel_restore has no such key", comments)
    assert re.search(r"not needed: [^()]*datasets\.val: null[^()]* \(is not set\)", comments)
    assert re.search(r"not needed: [^()]*datasets\.train\.gt_size: null[^()]* \(is not set\)", comments)


def test_blur_without_kernels_is_a_comment():
    tree = copy.deepcopy(TREES["redux_compact_otf_x4"])
    kernels = {name: tree["datasets"]["train"].pop(name) for name in ("kernel_list", "kernel_prob", "blur_sigma")}
    tree["datasets"]["train"]["kernel_info"] = kernels
    tree["blur_prob"] = 0.7
    comments = comments_of(text_of(tree))
    assert "not carried: blur_prob: 0.7 (there is no blur without kernel_list" in comments
    assert re.search(r"not carried: datasets\.train\.kernel_info\.kernel_list", comments)


def test_an_option_is_found_without_a_search_through_all_options(monkeypatch):
    looked_at = 0

    def counted(*given):
        nonlocal looked_at
        for item in leaves(*given):
            looked_at += 1
            yield item

    tree = copy.deepcopy(TREES["basicsr_edsr_x4"]) | {"extra": {f"k{place}": 1 for place in range(3000)}}
    monkeypatch.setattr("accel_restore.config.convert.draft.leaves", counted)
    draft = converted(tree)
    assert not draft.unread
    assert looked_at < 30_000  # a search for each option looks at 9 million


def test_secrets_are_not_copied(monkeypatch):
    tree = replaced(TREES["nafnet_denoise"], "logger.wandb.project", "x")
    tree["logger"]["api_key"] = "abcdefgh12345678"
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    assert "abcdefgh12345678" not in text_of(tree)
