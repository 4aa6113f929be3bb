"""Adversarial training of an option file: the loss, the discriminator, its optimizer and its schedule."""

import copy
from dataclasses import dataclass, field
from typing import Any

from accel_restore.config.convert.draft import Draft
from accel_restore.config.convert.optim import Owner, convert_optimizer

GAN = ("ganloss", "gan_loss", "multiscaleganloss", "r3ganloss", "wganloss")  # types of losses, in small letters
NO_ADVERSARY = "there is no adversarial loss with a discriminator, so the network is trained alone"
_TYPES = {"vanilla": "vanilla", "lsgan": "lsgan", "hinge": "hinge", "wgan": "wgan", "wgan_softplus": "vanilla"}
_OF_LOSSES = {"wganloss": "wgan", "r3ganloss": "relativistic"}  # losses without a gan_type
_LABELS = {"real_label_val": 1, "fake_label_val": 0}
_CHANNELS = ("num_in_ch", "input_nc", "in_ch", "in_channels", "in_nc")
_DEFAULT = "unet_sn"


@dataclass(frozen=True)
class _Discriminator:
    """A discriminator here; arguments: names there and here; fixed: arguments whose only value here is this one."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    change: str = ""  # how it differs; weights of such a one do not fit


_PATCH = _Discriminator(
    "patch",
    {"ndf": "width", "num_feat": "width"},
    {"n_layers": 3, "num_layers": 3, "use_sigmoid": False, "num_d": 1},
    "is patch here: one scale, spectral norm in the three inner layers, a padding of 1 pixel",
)
_DISCRIMINATORS = {  # types, in small letters
    "unetdiscriminatorsn": _Discriminator("unet_sn", {"num_feat": "width", "skip_connection": "skip"}),
    "vggstylediscriminator": _Discriminator("vgg", {"num_feat": "width"}),
    **dict.fromkeys(
        (
            "patchgandiscriminatorsn", "multiscalepatchgandiscriminatorsn", "patchgandiscriminator",
            "patchdiscriminator", "nlayerdiscriminator",
        ),
        _PATCH,
    ),
}  # fmt: skip


def convert_gan_loss(draft: Draft, option: str, weight: int | float, weight_key: str) -> None:
    """Carry an adversarial loss over: a section with a type, and a weight that is not 0."""
    if not draft.section("network_d"):
        draft.lose(option, "there is no discriminator (network_d)")
        return
    if "adversarial" in draft.config:
        draft.lose(option, "there is one adversarial loss (adversarial.loss)")
        return
    draft.take(weight_key)
    draft.put("adversarial.loss", _loss_name(draft, option), f"{option}.type", f"{option}.gan_type")
    draft.put("adversarial.weight", weight, weight_key)
    for name, label in _LABELS.items():
        if draft.peek(f"{option}.{name}") == label:
            draft.take(f"{option}.{name}")
        draft.lose(f"{option}.{name}", "the labels are 1 for clean images and 0 for outputs")
    draft.lose(option, "the adversarial loss has no such argument here")


def _loss_name(draft: Draft, option: str) -> str:
    given = draft.take(f"{option}.gan_type")
    kind = str(draft.take(f"{option}.type")).lower()
    if kind == "r3ganloss":
        draft.change(f"{option}.type", "adversarial.loss is relativistic, in both directions; adversarial.r1 adds R1")
    if kind in _OF_LOSSES:
        return _OF_LOSSES[kind]
    name = _TYPES.get(given) if isinstance(given, str) else None
    is_relativistic = draft.peek("model_type") == "ESRGANModel"
    if given is not None and name is None:
        draft.refuse(f"{option}.gan_type", "is not a loss of accel_restore")
        draft.todo.append(f"adversarial.loss: {given} has no counterpart; choose one (configs/README.md)")
    elif is_relativistic and name not in (None, "vanilla"):
        draft.change(f"{option}.gan_type", "the relativistic loss is that of vanilla")
    if is_relativistic:
        draft.change(
            "model_type",
            "compares logits with the mean over the batch; here with the mean over the paired image "
            "(adversarial.loss: relativistic)",
        )
        return "relativistic"
    return name or "vanilla"


def convert_adversarial(draft: Draft) -> None:
    """Carry the discriminator and what trains it over, after the losses and the schedule."""
    if "adversarial" not in draft.config:
        kind = draft.peek("model_type")
        if isinstance(kind, str) and "GAN" in kind:
            draft.lose("model_type", NO_ADVERSARY)
        return
    _convert_checkpoint(draft, _convert_discriminator(draft))
    convert_optimizer(draft, Owner("train.optim_d", "adversarial.optimizer", "discriminator's optimizer", "adam"))
    _share_schedule(draft)
    _convert_turns(draft)
    _convert_penalty(draft)


def _convert_discriminator(draft: Draft) -> _Discriminator | None:
    """Return the discriminator; None if it is not here."""
    kind = draft.take("network_d.type")
    found = _DISCRIMINATORS.get(kind.lower()) if isinstance(kind, str) else None
    if found is None:
        draft.put("adversarial.discriminator.name", _DEFAULT)
        draft.refuse("network_d.type", f"is not among accel_restore's discriminators, so it is {_DEFAULT}")
        draft.lose("network_d", f"belongs to another discriminator than {_DEFAULT}")
        draft.todo.append(
            f"adversarial.discriminator.name: {kind or 'network_d'} is not among accel_restore's discriminators, so it "
            f"is {_DEFAULT}; choose another (configs/README.md), or write the import path of its class"
        )
        return None
    draft.put("adversarial.discriminator.name", found.name, "network_d.type")
    if found.change:
        draft.change("network_d.type", found.change)
    _convert_image(draft, found.name)
    for name, ours in found.arguments.items():
        _put_argument(draft, f"network_d.{name}", ours)
    for name, value in found.fixed.items():
        if draft.peek(f"network_d.{name}") == value:
            draft.take(f"network_d.{name}")
        draft.lose(f"network_d.{name}", f"is always {str(value).lower()} here")
    draft.lose("network_d", f"{found.name} has no such argument here")
    return found


def _convert_image(draft: Draft, name: str) -> None:
    """Read what the discriminator takes from `data`: the number of channels and, of vgg, the side of the crops."""
    data = draft.config.get("data", {})
    read = {f"network_d.{option}": ("channels", data.get("channels", 3)) for option in _CHANNELS}
    if name == "vgg":
        read["network_d.input_size"] = ("patch_size", data.get("patch_size"))
    for option, (key, value) in read.items():
        if draft.peek(option) == value:
            draft.take(option)
        draft.lose(option, f"the discriminator takes data.{key}")


def _put_argument(draft: Draft, option: str, ours: str) -> None:
    if draft.peek(option) is None:
        return
    value = draft.take(option) if ours == "skip" else draft.whole(option)
    if value is None:  # no whole number, which has a comment
        return
    if isinstance(value, bool) if ours == "skip" else value >= 1:
        draft.put(f"adversarial.discriminator.{ours}", value, option)
    else:
        draft.refuse(option, "is not true or false" if ours == "skip" else "is not a width")


def _convert_checkpoint(draft: Draft, found: _Discriminator | None) -> None:
    option = draft.first("path.pretrain_network_d", "path.pretrain_model_d")
    file = draft.take(option)
    if file is None:
        return
    if not isinstance(file, str) or not file:
        draft.refuse(option, "is not a file")
    elif found is None or found.change:
        draft.refuse(option, "its weights do not fit the discriminator here")
    else:
        draft.put("adversarial.discriminator.checkpoint", file, option)
        if draft.peek("path.strict_load_d") is False:
            draft.lose("path.strict_load_d", "all weights of the discriminator must fit")


def _share_schedule(draft: Draft) -> None:
    """Give the discriminator the schedule of the network: there, one schedule is for both."""
    for name, value in draft.config.get("scheduler", {}).items():
        draft.put(f"adversarial.scheduler.{name}", copy.copy(value), *draft.origins[f"scheduler.{name}"])
    rates = [draft.config.get("optimizer", {}), draft.config["adversarial"].get("optimizer", {})]
    if draft.config.get("scheduler", {}).get("hold_epochs") and rates[0].get("lr") != rates[1].get("lr"):
        draft.changes.append("The discriminator's rate, too, is constant for scheduler.hold_epochs, at its own value.")


def _convert_turns(draft: Draft) -> None:
    """Carry over how often each network is stepped."""
    option = "train.net_d_iters"
    if draft.peek(option) == 1:
        draft.skip(option, "both networks are stepped in every step")
    elif draft.is_positive(option):
        if every := draft.whole(option):
            draft.put("adversarial.generator_every", every, option)
    elif draft.peek(option) != 0:
        draft.lose(option, "is not a number of steps")
    option = "train.net_d_init_iters"
    if draft.is_positive(option):
        draft.lose(
            option,
            "there the discriminator is trained alone first; here both start together, or the network first "
            "(adversarial.starts_at_epoch)",
        )
    elif draft.peek(option) != 0:
        draft.lose(option, "is not a number of steps")
    for name in draft.section("train"):
        if name.startswith("adaptive_d") and draft.peek("train.adaptive_d") is not True:
            draft.skip(f"train.{name}", "adaptive_d is off")
        elif name.startswith("adaptive_d"):
            draft.lose(f"train.{name}", "adversarial.skip_above decides by the discriminator's accuracy, not by a loss")


def _convert_penalty(draft: Draft) -> None:
    """Carry the penalty R1 over; both halve the squared norm and multiply it by the number of steps."""
    weight, every = "train.r1_reg_weight", "train.net_d_reg_every"
    if not draft.is_positive(weight):
        if draft.peek(weight) != 0:
            draft.lose(weight, "is not a weight")
        draft.skip(every, "there is no penalty R1")
        return
    draft.put("adversarial.r1", draft.take(weight), weight)
    if draft.config["adversarial"]["discriminator"]["name"] != "vgg":
        draft.change(weight, "the penalty is on the mean of an image's logits, there on their sum")
    if draft.is_positive(every):
        if steps := draft.whole(every):
            draft.put("adversarial.r1_every", steps, every)
    elif draft.peek(every) is not None:
        draft.lose(every, "is not a number of steps")
