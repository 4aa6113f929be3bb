"""Adversarial training in option files of BasicSR and traiNNer-redux becomes the section `adversarial`."""

import copy
import re

import pytest
from runs import ROOT

from accel_restore.config.convert.adversarial import NO_ADVERSARY
from accel_restore.config.convert.check import missing_files, settle
from accel_restore.config.convert.options import convert
from accel_restore.config.convert.write import to_text
from accel_restore.config.load import config_from
from accel_restore.config.safe_yaml import parse_yaml


def tree_of(name):
    path = ROOT / "tests" / "fixtures" / "option_files" / f"{name}.yml"
    return parse_yaml(path.read_text(encoding="utf-8"), name)


REALESRGAN, ESRGAN, REDUX = tree_of("realesrgan_x2"), tree_of("basicsr_esrgan_x4"), tree_of("redux_realplksr_x2")


def changed(tree, **sections):
    """Return a copy of the tree with some keys of its sections replaced; None removes a key."""
    tree = copy.deepcopy(tree)
    for section, keys in sections.items():
        for name, value in keys.items():
            place = tree["train"] if section == "gan_opt" else tree
            place.setdefault(section, {})
            if value is None:
                place[section].pop(name, None)
            else:
                place[section][name] = value
    return tree


def converted(tree):
    """Return the checked configuration, its comments as {(kind, option): reason}, and what is to do."""
    known = {"esrgan", "realplksr"}
    draft = convert(tree, "options.yml", known, lambda name: (), lambda name: None)
    config = settle(draft, "options.yml")
    text = to_text(draft, "options.yml", "accel-restore train")
    assert config_from(parse_yaml(text, "mine.yaml")) == config
    comments = {(note.kind, option): note.reason for note in draft.notes for option in note.options}
    return config, comments, draft


def test_a_file_like_real_esrgans_gives_a_whole_section():
    config, comments, _ = converted(REALESRGAN)
    assert config.adversarial.model_dump() == {
        "discriminator": {"name": "unet_sn", "checkpoint": "weights/judge.pth", "width": 48, "skip": False},
        "loss": "vanilla",  # BasicSR's wgan_softplus is the same formula
        "weight": 0.2,
        "r1": 8.0,
        "r1_every": 4,
        "starts_at_epoch": 0,
        "generator_every": 3,
        "discriminator_every": 1,
        "skip_above": None,
        "optimizer": config.adversarial.optimizer.model_dump(),
        "scheduler": config.scheduler.model_dump(),
    }
    optimizer = config.adversarial.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 5e-5, 1e-3)
    assert optimizer.betas == (0.5, 0.95) and config.optimizer.betas == (0.9, 0.95)
    assert config.adversarial.scheduler.name == "cosine" and config.adversarial.scheduler.warmup_epochs == 2
    assert config.loss == {"l1": 0.5}
    lost = {option: reason for (kind, option), reason in comments.items() if kind == "not carried"}
    assert list(lost) == ["train.net_d_init_iters"]
    assert "discriminator is trained alone first" in lost["train.net_d_init_iters"]
    assert "on the mean of an image's logits" in comments["changed", "train.r1_reg_weight"]


def test_the_discriminator_of_the_configuration_can_be_built():
    pytest.importorskip("torch")
    from accel_restore.optim.adversary import initial_discriminator

    tree = changed(REALESRGAN, path={"pretrain_network_d": None})
    weights = initial_discriminator(converted(tree)[0]).state_dict()
    assert weights["conv0.weight"].shape == (48, 3, 3, 3)
    weights = initial_discriminator(converted(ESRGAN)[0]).state_dict()
    assert weights["conv0_0.weight"].shape == (64, 3, 3, 3) and weights["linear1.weight"].shape == (100, 512 * 4 * 4)


def test_without_a_rest_the_turns_and_the_penalty_are_those_of_the_default():
    names = ("net_d_iters", "net_d_init_iters", "r1_reg_weight", "net_d_reg_every", "optim_d")
    config, comments, draft = converted(changed(REALESRGAN, train=dict.fromkeys(names)))
    second = config.adversarial
    assert (second.generator_every, second.r1, second.optimizer.name, second.optimizer.lr) == (1, 0, "adam", 1e-4)
    assert any("names no discriminator's optimizer, so it is adam" in line for line in draft.changes)
    assert not [option for kind, option in comments if kind == "not carried"]


def test_esrgans_model_is_relativistic():
    config, comments, _ = converted(ESRGAN)
    assert (config.adversarial.loss, config.adversarial.weight) == ("relativistic", 5e-3)
    assert config.adversarial.discriminator.model_dump() == {"name": "vgg", "checkpoint": None, "width": 64}
    assert "mean over the batch" in comments["changed", "model_type"]
    config, comments, _ = converted(changed(ESRGAN, gan_opt={"gan_type": "lsgan"}))
    assert config.adversarial.loss == "relativistic"
    assert "that of vanilla" in comments["changed", "train.gan_opt.gan_type"]


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("vanilla", "vanilla"), ("lsgan", "lsgan"), ("hinge", "hinge"), ("wgan", "wgan"), ("wgan_softplus", "vanilla")],
)
def test_losses_have_their_names(kind, loss):
    config, comments, _ = converted(changed(REALESRGAN, gan_opt={"gan_type": kind}))
    assert config.adversarial.loss == loss
    assert not [option for _, option in comments if option.startswith("train.gan_opt")]


def test_a_loss_that_is_not_here_is_to_choose():
    config, comments, draft = converted(changed(REALESRGAN, gan_opt={"gan_type": "ganetic", "eps": 1e-8}))
    assert config.adversarial.loss == "vanilla"
    assert comments["not carried", "train.gan_opt.gan_type"] == "is not a loss of accel_restore"
    assert ("not carried", "train.gan_opt.eps") in comments
    assert any(line.startswith("adversarial.loss: ganetic") for line in draft.todo)


def test_other_labels_are_comments():
    given = {"real_label_val": 0.9, "fake_label_val": 0.1}
    config, comments, _ = converted(changed(REALESRGAN, gan_opt=given))
    for name in given:
        assert comments["not carried", f"train.gan_opt.{name}"].startswith("the labels are 1")
    assert config.adversarial.weight == 0.2


@pytest.mark.parametrize(
    ("network", "section"),
    [
        ({"type": "unetdiscriminatorsn"}, {"name": "unet_sn"}),
        ({"type": "VGGStyleDiscriminator", "num_feat": 32, "input_size": 160}, {"name": "vgg", "width": 32}),
        ({"type": "PatchGANDiscriminatorSN", "ndf": 32, "n_layers": 3}, {"name": "patch", "width": 32}),
        ({"type": "MultiscalePatchGANDiscriminatorSN"}, {"name": "patch"}),
    ],
)
def test_discriminators_have_their_names_and_widths(network, section):
    tree = changed(REALESRGAN, path={"pretrain_network_d": None})
    config, comments, draft = converted({**tree, "network_d": network})
    assert config.adversarial.discriminator.model_dump() == {"checkpoint": None, **section}
    lost = [option for kind, option in comments if kind == "not carried" and option.startswith("network_d")]
    assert not lost and not [line for line in draft.todo if line.startswith("adversarial")]
    assert (("changed", "network_d.type") in comments) is (section["name"] == "patch")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("num_in_ch", 4, "data.channels"),
        ("num_feat", "wide", "not a number"),
        ("num_feat", -1, "not a width"),
        ("skip_connection", "on", "not true or false"),
        ("depth", 5, "no such argument"),
    ],
)
def test_arguments_that_do_not_fit_are_comments(option, value, words):
    config, comments, _ = converted(changed(REALESRGAN, network_d={option: value}))
    assert words in comments["not carried", f"network_d.{option}"]
    assert config.adversarial.discriminator.name == "unet_sn"


def test_crops_of_another_size_and_layers_of_another_number_are_comments():
    vgg = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 64, "input_size": 128}
    comments = converted({**REALESRGAN, "network_d": vgg})[1]
    assert "data.patch_size" in comments["not carried", "network_d.input_size"]
    patch = {"type": "PatchGANDiscriminatorSN", "input_nc": 3, "n_layers": 4, "use_sigmoid": True}
    config, comments, _ = converted({**REALESRGAN, "network_d": patch})
    assert comments["not carried", "network_d.n_layers"] == "is always 3 here"
    assert comments["not carried", "network_d.use_sigmoid"] == "is always false here"
    assert "do not fit" in comments["not carried", "path.pretrain_network_d"]
    assert config.adversarial.discriminator.checkpoint is None


def test_a_discriminator_that_is_not_here_is_to_choose():
    tree = changed(REDUX, path={"pretrain_network_d": "net_d.safetensors"})
    config, comments, draft = converted(tree)
    assert config.adversarial.discriminator.model_dump() == {"name": "unet_sn", "checkpoint": None}
    assert "not among accel_restore's discriminators" in comments["not carried", "network_d.type"]
    assert ("not carried", "network_d.num_feat") in comments
    assert "do not fit" in comments["not carried", "path.pretrain_network_d"]
    assert any(re.match(r"adversarial\.discriminator\.name: dunet is not among", line) for line in draft.todo)


def test_a_list_of_losses_gives_one_adversarial_loss():
    config, _, _ = converted(REDUX)
    assert (config.adversarial.loss, config.adversarial.weight) == ("vanilla", 0.1)
    assert config.adversarial.optimizer.name == "adamw" and config.adversarial.scheduler == config.scheduler
    tree = copy.deepcopy(REDUX)
    tree["train"]["losses"].append({"type": "multiscaleganloss", "gan_type": "hinge", "loss_weight": 0.3})
    config, comments, _ = converted(tree)
    place = len(tree["train"]["losses"]) - 1
    assert config.adversarial.loss == "vanilla"
    assert "there is one adversarial loss" in comments["not carried", f"train.losses.{place}.gan_type"]


@pytest.mark.parametrize("missing", ["loss", "weight", "network"])
def test_without_a_loss_or_a_discriminator_the_network_is_trained_alone(missing):
    tree = copy.deepcopy(REALESRGAN)
    if missing == "loss":
        del tree["train"]["gan_opt"]
    elif missing == "weight":
        tree["train"]["gan_opt"]["loss_weight"] = 0
    else:
        del tree["network_d"]
    config, comments, _ = converted(tree)
    assert config.adversarial is None and config.loss == {"l1": 0.5}
    for option in ("train.optim_d.lr", "path.pretrain_network_d", "train.net_d_iters", "model_type"):
        assert comments["not carried", option] == NO_ADVERSARY
    if missing == "network":
        assert "no discriminator" in comments["not carried", "train.gan_opt.loss_weight"]


def test_what_pauses_the_discriminator_is_a_comment():
    given = {"adaptive_d": False, "adaptive_d_threshold": 1.02}
    comments = converted(changed(REDUX, train=given))[1]
    assert ("not needed", "train.adaptive_d") in comments and ("not needed", "train.adaptive_d_threshold") in comments
    comments = converted(changed(REDUX, train=given | {"adaptive_d": True}))[1]
    assert "skip_above" in comments["not carried", "train.adaptive_d_threshold"]


@pytest.mark.parametrize("option", ["net_d_iters", "net_d_init_iters", "r1_reg_weight", "net_d_reg_every"])
@pytest.mark.parametrize("value", ["often", -2, 2.5])
def test_numbers_that_are_none_are_comments_with_a_fitting_reason(option, value):
    comments = converted(changed(REALESRGAN, train={option: value}))[1]
    if option == "r1_reg_weight" and value == 2.5:
        assert ("changed", f"train.{option}") in comments
    else:
        assert comments["not carried", f"train.{option}"] != NO_ADVERSARY


def test_a_rate_below_the_end_of_the_shared_schedule_drops_that_end_alone():
    tree = copy.deepcopy(REALESRGAN)
    tree["train"]["optim_d"]["lr"] = 1e-6
    tree["train"]["scheduler"]["eta_min"] = 1e-5
    config, comments, _ = converted(tree)
    assert config.scheduler.min_lr == 1e-5 and config.adversarial.scheduler.min_lr <= 1e-6
    assert "adversarial.optimizer.lr" in comments["not carried", "train.scheduler.eta_min"]


def test_comments_are_at_the_section_and_missing_weights_are_named():
    config, _, draft = converted(REALESRGAN)
    sections = {note.section for note in draft.notes for option in note.options if "net_d_" in option}
    assert sections == {"adversarial"}
    assert "adversarial.discriminator.checkpoint: weights/judge.pth" in missing_files(config)
