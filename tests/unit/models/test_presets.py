"""Presets have the sizes that the papers print; networks are built without memory for their weights."""

import re

import pytest
from torch import nn

from accel_restore.models import build_model
from accel_restore.models.presets import FAMILIES, presets_of
from accel_restore.models.spandrel_models import skeleton_device

# Preset, scale, and millions of parameters in the paper; the last digit may be rounded.
PAPERS = [
    ("atd", 2, 20.1), ("atd", 4, 20.3), ("atd_light", 2, 0.753), ("atd_light", 3, 0.760), ("atd_light", 4, 0.769),
    ("craft", 2, 0.737), ("craft", 3, 0.744), ("craft", 4, 0.753),
    ("dat", 2, 14.66), ("dat", 4, 14.80), ("dat_s", 2, 11.06), ("dat_s", 4, 11.21), ("dat_2", 2, 11.06),
    ("dat_light", 2, 0.553), ("dat_light", 3, 0.561), ("dat_light", 4, 0.573),
    ("drct", 4, 14.13), ("drct_l", 4, 27.58),
    ("drunet", 1, 32.64), ("esrgan", 4, 16.70), ("fftformer", 1, 16.6),
    ("grl_b", 4, 20.2), ("grl_s", 2, 3.34), ("grl_s", 4, 3.49), ("grl_t", 2, 0.89), ("grl_t", 4, 0.91),
    ("hat_s", 2, 9.5), ("hat_s", 4, 9.62), ("hat_m", 2, 20.6), ("hat_m", 4, 20.77), ("hat_l", 2, 40.7),
    ("hat_l", 4, 40.84),
    ("mixdehazenet_s", 1, 3.17), ("mixdehazenet_b", 1, 6.25), ("mixdehazenet_l", 1, 12.42),
    ("nafnet_32", 1, 17.11), ("nafnet_64", 1, 67.89), ("nafnet_sidd_32", 1, 29.16), ("nafnet_sidd_64", 1, 115.98),
    ("plksr", 4, 7.39), ("plksr_tiny", 2, 2.35), ("plksr_tiny", 4, 2.37),
    ("rcan", 2, 15.44), ("rcan", 4, 15.59), ("restormer", 1, 26.13), ("restormer_denoise", 1, 26.11),
    ("retinexformer", 1, 1.61), ("rgt", 4, 13.37), ("rgt_s", 4, 10.20),
    ("safmn", 2, 0.228), ("safmn", 3, 0.233), ("safmn", 4, 0.240), ("scunet", 1, 17.95),
    ("seemore_t", 2, 0.220), ("seemore_t", 4, 0.232),
    ("swinir_classical", 2, 11.75), ("swinir_classical", 4, 11.90), ("swinir_real_l", 4, 28.01),
    ("uformer_t", 1, 5.23), ("uformer_s", 1, 20.63), ("uformer_b", 1, 50.88),
]  # fmt: skip


def build(preset: str, scale: int) -> nn.Module:
    name = next(name for name, family in FAMILIES.items() if preset in family.presets)
    arguments = presets_of(name)[preset] | ({"norm": False} if name == "rcan" else {})  # its mean colour has values
    with skeleton_device():
        return build_model(name, arguments, 3, scale)


def millions(model: nn.Module, *without: str) -> float:
    """Return the millions of parameters, apart from those whose name holds one of `without`."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if not any(part in name for part in without)) / 1e6


def each_preset_once():
    seen: set[str] = set()
    for preset, scale, expected in PAPERS:
        again = [pytest.mark.sweep] if preset in seen else []
        seen.add(preset)
        yield pytest.param(preset, scale, expected, marks=again, id=f"{preset} x{scale}")


@pytest.mark.parametrize(("preset", "scale", "expected"), list(each_preset_once()))
def test_a_preset_has_the_number_of_parameters_of_its_paper(preset, scale, expected):
    assert millions(build(preset, scale)) == pytest.approx(expected, rel=0.006)


@pytest.mark.parametrize(("scale", "expected"), [(2, 0.878), (3, 0.886), (4, 0.897)])
def test_swinir_light_has_the_papers_number_without_its_tables_of_position_biases(scale, expected):
    """The paper's numbers leave out 32,400 parameters."""
    model = build("swinir_light", scale)
    assert millions(model, "relative_position_bias_table") == pytest.approx(expected, abs=0.0005)
    assert millions(model) == pytest.approx(expected + 0.0324, abs=0.0005)


@pytest.mark.parametrize(("scale", "expected"), [(2, 0.481), (4, 0.498)])
def test_span_has_the_papers_number_without_the_branches_of_training(scale, expected):
    """The paper counts the network whose branches are fused into one convolution each (`eval_conv`)."""
    model = build("span", scale)
    assert millions(model, ".sk.", ".conv.") == pytest.approx(expected, abs=0.0005)
    assert millions(model) > 5 * expected


@pytest.mark.parametrize(("scale", "expected"), [(2, 0.772), (3, 0.780), (4, 0.792)])
def test_omnisr_is_near_the_papers_number(scale, expected):
    """The authors' code, which spandrel has taken in, is 1.7 % larger than the paper says."""
    assert millions(build("omnisr", scale)) == pytest.approx(expected, rel=0.018)


def test_presets_are_built():
    counted = {preset for preset, *_ in PAPERS} | {"swinir_light", "span", "omnisr"}
    for family in FAMILIES.values():
        for preset in family.presets.keys() - counted:
            assert build(preset, 1).parameters()


def test_each_preset_is_unique_and_cites_its_source():
    names = [preset for family in FAMILIES.values() for preset in family.presets]
    assert len(names) == len(set(names)) and all(preset.startswith(name) for name, family in FAMILIES.items()
                                                 for preset in family.presets)  # fmt: skip
    assert all(re.search(r"\b20[12]\d\b", family.paper) for family in FAMILIES.values())


def test_presets_are_copies():
    presets_of("hat")["hat_s"]["depths"].append(9)
    assert presets_of("hat")["hat_s"]["depths"] == [6] * 6
    assert presets_of("mypackage.nets:MyNet") == {}
