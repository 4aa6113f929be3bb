"""The network of an option file, `network_g`: its name and its arguments here."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from accel_restore.config.convert.draft import Draft

# The names that architectures give to what data.channels and data.scale set.
_CHANNELS = ("num_in_ch", "in_chans", "inp_channels", "img_channel", "in_nc", "in_channels", "in_ch", "n_colors")
_OUT_CHANNELS = ("num_out_ch", "out_channels", "out_nc", "out_chans", "out_ch")
_SCALES = ("upscale", "scale", "upscaling_factor", "up_scale", "upscale_factor", "sf")


@dataclass(frozen=True)
class _Network:
    """A model here; arguments: names there and here; fixed: arguments whose only value here is this one."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)


_NAFNET = _Network(
    "nafnet", {"enc_blk_nums": "encoder_blocks", "middle_blk_num": "middle_blocks", "dec_blk_nums": "decoder_blocks"}
)
_NETWORKS = {  # types, in small letters, whose name or arguments differ from those here
    "nafnet": _NAFNET,
    "nafnetlocal": _NAFNET,
    "restormer": _Network(
        "restormer",
        {
            "dim": "width",
            "num_blocks": "blocks",
            "num_refinement_blocks": "refinement_blocks",
            "ffn_expansion_factor": "ffn_expansion",
            "LayerNorm_type": "layer_norm",
        },
        {"dual_pixel_task": False},
    ),
    "rrdbnet": _Network("esrgan", {"num_feat": "num_filters", "num_block": "num_blocks"}, {"num_grow_ch": 32}),
    "srvggnetcompact": _Network("compact"),
    "ultracompact": _Network("compact", added={"num_feat": 64, "num_conv": 8}),
    "superultracompact": _Network("compact", added={"num_feat": 24, "num_conv": 8}),
    "rcan": _Network(
        "rcan",
        {
            "num_feat": "n_feats",
            "num_group": "n_resgroups",
            "num_block": "n_resblocks",
            "squeeze_factor": "reduction",
            "img_range": "rgb_range",
        },
    ),
}
_VALUES = {"WithBias": "with_bias", "BiasFree": "bias_free"}  # of Restormer's layer_norm
# The modules of architectures that BasicSR has, and that are not here.
_OF_BASICSR = {
    "EDSR": "edsr_arch",
    "MSRResNet": "srresnet_arch",
    "RIDNet": "ridnet_arch",
    "ECBSR": "ecbsr_arch",
    "SRVGGNetCompact": "srvgg_arch",
    "RRDBNet": "rrdbnet_arch",
    "SwinIR": "swinir_arch",
    "RCAN": "rcan_arch",
}


def convert_network(
    draft: Draft,
    known: Collection[str],
    presets_of: Callable[[str], Collection[str]],
    arguments_of: Callable[[str], Collection[str] | None],
) -> None:
    """Carry `network_g` over. `known` are the models by name; the functions return a model's presets and arguments.

    The channels of the images and the scale come first, because `data` sets them.
    """
    given = draft.take("network_g.type")
    kind = given if isinstance(given, str) else ""
    network = _NETWORKS.get(kind.lower())
    if network is None or network.name not in known:
        network = _named(kind, known, presets_of)
    _convert_channels(draft, keep=network is None)
    _convert_scale(draft, keep=network is None)
    if network is None:
        _name_own_class(draft, kind)
        return
    draft.put("model.name", network.name, "network_g.type")
    for name, value in network.added.items():
        draft.put(f"model.{name}", value, "network_g.type")
    if "_" in kind and kind.lower() not in (network.name, *_NETWORKS) and "preset" not in network.added:
        draft.change("network_g.type", f"is {network.name} here, in its default size")
        draft.todo.append(f"model: set the arguments of {kind}; {network.name} has its default size")
    accepted = arguments_of(network.name)
    for name in draft.section("network_g"):
        option, ours = f"network_g.{name}", network.arguments.get(name, name)
        if option not in draft.unread and not any(key.startswith(f"{option}.") for key in draft.unread):
            continue
        if name in network.fixed:
            _take_fixed(draft, option, network.fixed[name])
        elif accepted is not None and ours not in accepted:
            draft.lose(option, f"{network.name} has no such argument here")
        else:
            value = draft.take(option)
            value = _VALUES.get(value, value) if isinstance(value, str) else value
            draft.put(f"model.{ours}", value, option)
    if kind == "RRDBNet" and draft.config["data"].get("scale", 1) < 3:
        draft.change(
            "network_g.type",
            "there, the input is first rearranged by pixel_unshuffle; to go on from such weights, give "
            "model.checkpoint alone, without model.name",
        )


def _named(kind: str, known: Collection[str], presets_of: Callable[[str], Collection[str]]) -> _Network | None:
    """Return the network that is called like this here, also with a size, such as `hat_s`."""
    plain = kind.lower()
    for name in (plain, plain.replace("_", ""), plain.removesuffix("net")):
        if name in known:
            return _Network(name)
    base = plain.partition("_")[0]
    if base in known:
        return _Network(base, added={"preset": plain} if plain in presets_of(base) else {})
    return None


def _convert_channels(draft: Draft, keep: bool) -> None:
    """Set data.channels from the network's input; `keep`: leave the options to the network, too."""
    option = next((f"network_g.{name}" for name in _CHANNELS if draft.peek(f"network_g.{name}") is not None), None)
    channels = draft.peek(option) if option else None
    if option and channels in (1, 3):
        draft.put("data.channels", channels, option)
    elif option and not keep:
        draft.lose(option, "images have 1 or 3 channels (data.channels)")
    if keep:
        return
    if option:
        draft.take(option)
    for name in _OUT_CHANNELS:
        out = f"network_g.{name}"
        if draft.peek(out) == channels:
            draft.take(out)
        draft.lose(out, "a model's output has the channels of its input (data.channels)")


def _convert_scale(draft: Draft, keep: bool) -> None:
    """Set data.scale from `scale`, or from the network's own argument."""
    option = draft.first("scale", *(f"network_g.{name}" for name in _SCALES))
    scale = draft.take(option)
    if scale in (1, 2, 3, 4) and not isinstance(scale, bool):
        draft.put("data.scale", int(scale), option)
    elif scale is not None:
        draft.refuse(option, "data.scale is 1, 2, 3 or 4")
    if keep:
        return
    for name in _SCALES:
        own = f"network_g.{name}"
        if draft.peek(own) == scale:
            draft.take(own)
        draft.lose(own, "the model takes its scale from data.scale")


def _take_fixed(draft: Draft, option: str, value: Any) -> None:
    if draft.take(option) not in (None, value):
        draft.refuse(option, f"is always {value} here")


def _name_own_class(draft: Draft, kind: str) -> None:
    """Name a class that is not here by an import path, with its arguments."""
    name = kind if re.fullmatch(r"[A-Za-z_]\w*", kind) else "Network"
    module = f"basicsr.archs.{_OF_BASICSR[name]}" if name in _OF_BASICSR else "mypackage.nets"
    draft.put("model.name", f"{module}:{name}", "network_g.type")
    draft.change("network_g.type", "is not among accel_restore's models; name its class as package.module:Name")
    draft.todo.append(
        f"model.name: {kind or 'the network'} is not among accel_restore's models; write the import path of its class, "
        "or choose another model (accel-restore models)"
    )
    for argument in draft.section("network_g"):
        if argument != "type":
            draft.put(f"model.{argument}", draft.take(f"network_g.{argument}"), f"network_g.{argument}")
