"""The published configurations of architectures: `model.preset` takes the place of their keyword arguments.

Scale and number of channels are not part of a preset; the data decide them. Nothing heavy is imported.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from accel_restore.utils.imports import unknown_choice


@dataclass(frozen=True)
class Family:
    """The presets of one architecture: their names and keyword arguments, and where the numbers are from."""

    paper: str  # authors, year, title, venue
    presets: dict[str, dict[str, Any]]


def _levels(count: int, depth: int = 6, heads: int = 6) -> dict[str, Any]:
    """Return equal depths and heads for each of `count` groups of blocks."""
    return {"depths": [depth] * count, "num_heads": [heads] * count}


_SWINIR = {"window_size": 8, "mlp_ratio": 2.0, "resi_connection": "1conv"}
_HAT = {
    "window_size": 16, "overlap_ratio": 0.5, "conv_scale": 0.01, "mlp_ratio": 2.0, "upsampler": "pixelshuffle",
    "resi_connection": "1conv", "drop_path_rate": 0.1,
}  # fmt: skip
_DAT = {"embed_dim": 180, "depth": [6] * 6, "num_heads": [6] * 6, "upsampler": "pixelshuffle"}
_DRCT = {"embed_dim": 180, "window_size": 16, "mlp_ratio": 2.0, "gc": 32, "upsampler": "pixelshuffle"}
_GRL = {
    "window_size": 32, "stripe_size": [64, 64], "stripe_groups": [None, None], "stripe_shift": True,
    "anchor_window_down_factor": 4, "mlp_ratio": 2.0,
}  # fmt: skip
_RGT = {"embed_dim": 180, "mlp_ratio": 2.0, "split_size": [8, 32], "c_ratio": 0.5}
_GOPRO = {"encoder_blocks": [1, 1, 1, 28], "middle_blocks": 1, "decoder_blocks": [1, 1, 1, 1]}
_SIDD = {"encoder_blocks": [2, 2, 4, 8], "middle_blocks": 12, "decoder_blocks": [2, 2, 2, 2]}
_UFORMER = {"num_heads": [1, 2, 4, 8, 16, 16, 8, 4, 2], "win_size": 8, "token_mlp": "leff"}
_KBNET = "Zhang et al. 2023, KBNet: Kernel Basis Network for Image Restoration, arXiv 2303.02881"

FAMILIES = {
    "atd": Family(
        "Zhang et al. 2024, Transcending the Limit of Local Window: Advanced Super-Resolution Transformer with "
        "Adaptive Token Dictionary, CVPR",
        {
            "atd": {
                **_levels(6), "embed_dim": 210, "window_size": 16, "category_size": 256, "num_tokens": 128,
                "reducted_dim": 20, "convffn_kernel_size": 5, "mlp_ratio": 2.0, "upsampler": "pixelshuffle",
            },
            "atd_light": {
                **_levels(4, heads=4), "embed_dim": 48, "window_size": 16, "category_size": 128, "num_tokens": 64,
                "reducted_dim": 8, "convffn_kernel_size": 7, "mlp_ratio": 1.0, "upsampler": "pixelshuffledirect",
            },
        },
    ),
    "compact": Family(
        "Wang et al. 2021, Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data, ICCVW "
        "(its released SRVGGNetCompact networks)",
        {
            "compact": {"num_feat": 64, "num_conv": 16, "act_type": "prelu"},
            "compact_general": {"num_feat": 64, "num_conv": 32, "act_type": "prelu"},
        },
    ),
    "craft": Family(
        "Li et al. 2023, Feature Modulation Transformer: Cross-Refinement of Global Representation via High-Frequency "
        "Prior for Image Super-Resolution, ICCV",
        {"craft": {**_levels(4, depth=2), "embed_dim": 48, "window_size": 16, "split_size_0": 4, "split_size_1": 16,
                   "mlp_ratio": 2.0}},
    ),
    "dat": Family(
        "Chen et al. 2023, Dual Aggregation Transformer for Image Super-Resolution, ICCV",
        {
            "dat": {**_DAT, "split_size": [8, 32], "expansion_factor": 4.0},
            "dat_s": {**_DAT, "split_size": [8, 16], "expansion_factor": 2.0},
            "dat_2": {**_DAT, "split_size": [8, 32], "expansion_factor": 2.0},
            "dat_light": {
                "embed_dim": 60, "depth": [18], "num_heads": [6], "split_size": [8, 32], "expansion_factor": 2.0,
                "resi_connection": "3conv", "upsampler": "pixelshuffledirect",
            },
        },
    ),
    "dctlsa": Family(
        "Zeng et al. 2023, Densely Connected Transformer With Linear Self-Attention for Lightweight Image "
        "Super-Resolution, IEEE Transactions on Instrumentation and Measurement",
        {"dctlsa": {"nf": 55, "num_modules": 6, "num_head": 5}},
    ),
    "ditn": Family(
        "Liu et al. 2023, Unfolding Once is Enough: A Deployment-Friendly Transformer Unit for Super-Resolution, "
        "ACM MM",
        {
            "ditn": {"dim": 60, "ITL_blocks": 4, "SAL_blocks": 4, "UFONE_blocks": 3, "patch_size": 8},
            "ditn_tiny": {"dim": 60, "ITL_blocks": 4, "SAL_blocks": 4, "UFONE_blocks": 1, "patch_size": 8},
        },
    ),
    "dncnn": Family(
        "Zhang et al. 2017, Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising, TIP",
        {
            "dncnn_s": {"depth": 17, "width": 64, "norm": "batch"},
            "dncnn_b": {"depth": 20, "width": 64, "norm": "batch"},
        },
    ),
    "drct": Family(
        "Hsu et al. 2024, DRCT: Saving Image Super-Resolution away from Information Bottleneck, CVPRW",
        {"drct": {**_levels(6), **_DRCT}, "drct_l": {**_levels(12), **_DRCT}},
    ),
    "drunet": Family(
        "Zhang et al. 2021, Plug-and-Play Image Restoration with Deep Denoiser Prior, TPAMI",
        {"drunet": {"nc": [64, 128, 256, 512], "nb": 4, "act_mode": "R"}},
    ),
    "esrgan": Family(
        "Wang et al. 2018, ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks, ECCVW",
        {"esrgan": {"num_filters": 64, "num_blocks": 23}},
    ),
    "fftformer": Family(
        "Kong et al. 2023, Efficient Frequency Domain-based Transformers for High-Quality Image Deblurring, CVPR",
        {"fftformer": {"dim": 48, "num_blocks": [6, 6, 12], "num_refinement_blocks": 4, "ffn_expansion_factor": 3}},
    ),
    "grl": Family(
        "Li et al. 2023, Efficient and Explicit Modelling of Image Hierarchies for Image Restoration, CVPR",
        {
            "grl_b": {**_GRL, "embed_dim": 180, "depths": [4, 4, 8, 8, 8, 4, 4], "num_heads_window": [3] * 7,
                      "num_heads_stripe": [3] * 7, "upsampler": "pixelshuffle", "local_connection": True},
            "grl_s": {**_GRL, "embed_dim": 128, "depths": [4] * 4, "num_heads_window": [2] * 4,
                      "num_heads_stripe": [2] * 4, "upsampler": "pixelshuffle"},
            "grl_t": {**_GRL, "embed_dim": 64, "depths": [4] * 4, "num_heads_window": [2] * 4,
                      "num_heads_stripe": [2] * 4, "upsampler": "pixelshuffledirect"},
        },
    ),
    "hat": Family(
        "Chen et al. 2023, Activating More Pixels in Image Super-Resolution Transformer, CVPR",
        {
            "hat_s": {**_levels(6), **_HAT, "embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24},
            "hat_m": {**_levels(6), **_HAT, "embed_dim": 180, "compress_ratio": 3, "squeeze_factor": 30},
            "hat_l": {**_levels(12), **_HAT, "embed_dim": 180, "compress_ratio": 3, "squeeze_factor": 30},
        },
    ),
    "hvicidnet": Family(
        "Yan et al. 2025, HVI: A New Color Space for Low-light Image Enhancement, CVPR",
        {"hvicidnet": {"channels": [36, 36, 72, 144], "heads": [1, 2, 4, 8]}},
    ),
    "kbnet_l": Family(
        _KBNET,
        {"kbnet_l": {"dim": 48, "num_blocks": [4, 6, 6, 8], "num_refinement_blocks": 4, "heads": [1, 2, 4, 8],
                     "ffn_expansion_factor": 1.5}},
    ),
    "kbnet_s": Family(
        _KBNET,
        {"kbnet_s": {"width": 64, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2],
                     "ffn_scale": 1.5, "lightweight": True}},
    ),
    "mixdehazenet": Family(
        "Lu et al. 2024, MixDehazeNet: Mix Structure Block for Image Dehazing Network, IJCNN",
        {
            "mixdehazenet_s": {"embed_dims": [24, 48, 96, 48, 24], "depths": [2, 2, 4, 2, 2]},
            "mixdehazenet_b": {"embed_dims": [24, 48, 96, 48, 24], "depths": [4, 4, 8, 4, 4]},
            "mixdehazenet_l": {"embed_dims": [24, 48, 96, 48, 24], "depths": [8, 8, 16, 8, 8]},
        },
    ),
    "mosr": Family(
        "umzi 2024, MoSR (no paper)",
        {
            "mosr": {"n_block": 24, "dim": 64, "kernel_size": 7, "expansion_ratio": 1.5},
            "mosr_t": {"n_block": 5, "dim": 48, "kernel_size": 7, "expansion_ratio": 1.5},
        },
    ),
    "nafnet": Family(
        "Chen et al. 2022, Simple Baselines for Image Restoration, ECCV",
        {
            "nafnet_32": {"width": 32, **_GOPRO},
            "nafnet_64": {"width": 64, **_GOPRO},
            "nafnet_sidd_32": {"width": 32, **_SIDD},
            "nafnet_sidd_64": {"width": 64, **_SIDD},
        },
    ),
    "omnisr": Family(
        "Wang et al. 2023, Omni Aggregation Networks for Lightweight Image Super-Resolution, CVPR",
        {"omnisr": {"num_feat": 64, "block_num": 1, "res_num": 5, "window_size": 8, "pe": True}},
    ),
    "plksr": Family(
        "Lee et al. 2024, Partial Large Kernel CNNs for Efficient Super-Resolution, arXiv 2404.11848",
        {
            "plksr": {"dim": 64, "n_blocks": 28, "kernel_size": 17, "split_ratio": 0.25, "ccm_type": "DCCM",
                      "use_ea": True},
            "plksr_tiny": {"dim": 64, "n_blocks": 12, "kernel_size": 13, "split_ratio": 0.25, "ccm_type": "DCCM",
                           "use_ea": False},
        },
    ),
    "rcan": Family(
        "Zhang et al. 2018, Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV",
        {"rcan": {"n_resgroups": 10, "n_resblocks": 20, "n_feats": 64, "reduction": 16}},
    ),
    "realplksr": Family(
        "Lee et al. 2024, Partial Large Kernel CNNs for Efficient Super-Resolution, arXiv 2404.11848 (RealPLKSR: its "
        "variant in neosr)",
        {
            "realplksr": {"dim": 64, "n_blocks": 28, "kernel_size": 17, "split_ratio": 0.25, "use_ea": True,
                          "norm_groups": 4},
            "realplksr_tiny": {"dim": 64, "n_blocks": 12, "kernel_size": 13, "split_ratio": 0.25, "use_ea": False,
                               "norm_groups": 4},
        },
    ),
    "restormer": Family(
        "Zamir et al. 2022, Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR",
        {
            "restormer": {"width": 48, "blocks": [4, 6, 6, 8], "heads": [1, 2, 4, 8], "layer_norm": "with_bias"},
            "restormer_denoise": {"width": 48, "blocks": [4, 6, 6, 8], "heads": [1, 2, 4, 8],
                                  "layer_norm": "bias_free"},
        },
    ),
    "retinexformer": Family(
        "Cai et al. 2023, Retinexformer: One-stage Retinex-based Transformer for Low-light Image Enhancement, ICCV",
        {"retinexformer": {"n_feat": 40, "stage": 1, "num_blocks": [1, 2, 2]}},
    ),
    "rgt": Family(
        "Chen et al. 2024, Recursive Generalization Transformer for Image Super-Resolution, ICLR",
        {
            "rgt": {**_RGT, "depth": [6] * 8, "num_heads": [6] * 8},
            "rgt_s": {**_RGT, "depth": [6] * 6, "num_heads": [6] * 6},
        },
    ),
    "safmn": Family(
        "Sun et al. 2023, Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, ICCV",
        {
            "safmn": {"dim": 36, "n_blocks": 8, "ffn_scale": 2.0},
            "safmn_l": {"dim": 128, "n_blocks": 16, "ffn_scale": 2.0},
        },
    ),
    "scunet": Family(
        "Zhang et al. 2023, Practical Blind Image Denoising via Swin-Conv-UNet and Data Synthesis, Machine "
        "Intelligence Research",
        {"scunet": {"config": [4] * 7, "dim": 64}},
    ),
    "seemore": Family(
        "Zamfir et al. 2024, See More Details: Efficient Image Super-Resolution by Experts Mining, ICML",
        {"seemore_t": {"num_experts": 3, "num_layers": 6, "embedding_dim": 36, "use_shuffle": False, "lr_space": "exp",
                       "recursive": 2, "global_kernel_size": 11, "topk": 1}},
    ),
    "span": Family(
        "Wan et al. 2024, Swift Parameter-free Attention Network for Efficient Super-Resolution, CVPRW",
        {"span": {"feature_channels": 52}, "span_48": {"feature_channels": 48}},
    ),
    "swin2sr": Family(
        "Conde et al. 2022, Swin2SR: SwinV2 Transformer for Compressed Image Super-Resolution and Restoration, ECCVW",
        {
            "swin2sr_classical": {**_levels(6), **_SWINIR, "embed_dim": 180, "upsampler": "pixelshuffle"},
            "swin2sr_light": {**_levels(4), **_SWINIR, "embed_dim": 60, "upsampler": "pixelshuffledirect"},
        },
    ),
    "swinir": Family(
        "Liang et al. 2021, SwinIR: Image Restoration Using Swin Transformer, ICCVW",
        {
            "swinir_classical": {**_levels(6), **_SWINIR, "embed_dim": 180, "upsampler": "pixelshuffle"},
            "swinir_light": {**_levels(4), **_SWINIR, "embed_dim": 60, "upsampler": "pixelshuffledirect"},
            "swinir_real": {**_levels(6), **_SWINIR, "embed_dim": 180, "upsampler": "nearest+conv"},
            "swinir_real_l": {**_levels(9, heads=8), **_SWINIR, "embed_dim": 240, "upsampler": "nearest+conv",
                              "resi_connection": "3conv"},
            "swinir_denoise": {**_levels(6), **_SWINIR, "embed_dim": 180, "upsampler": ""},
        },
    ),
    "uformer": Family(
        "Wang et al. 2022, Uformer: A General U-Shaped Transformer for Image Restoration, CVPR",
        {
            "uformer_t": {**_UFORMER, "embed_dim": 16, "depths": [2] * 9, "modulator": False},
            "uformer_s": {**_UFORMER, "embed_dim": 32, "depths": [2] * 9, "modulator": False},
            "uformer_b": {**_UFORMER, "embed_dim": 32, "depths": [1, 2, 8, 8, 2, 8, 8, 2, 1], "modulator": True},
        },
    ),
}  # fmt: skip


def presets_of(name: str) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of each preset of a model; no presets for a model of the user's own."""
    return deepcopy(FAMILIES[name].presets) if name in FAMILIES else {}


def describe_unknown(name: str | None, preset: str) -> str:
    """Return the message for a preset that the model does not have."""
    if presets := presets_of(name or ""):
        return unknown_choice(preset, presets)
    owner = next((other for other, family in FAMILIES.items() if preset in family.presets), None)
    remedy = f"'{preset}' is one of {owner}'s: set model.name={owner}" if owner else "give its arguments instead"
    model = f"the model '{name}'" if name else "the model of a checkpoint"
    return f"{model} has no presets; {remedy}"
