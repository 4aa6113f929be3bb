"""What the configuration must know of the data's modules, without the numpy and Pillow that those import."""

MAX_PIXELS = 89_478_485  # Pillow's own limit of what it calls a possible decompression bomb

# Import paths, so that names are checked without importing torch.
DEGRADATIONS = {
    name: f"accel_restore.data.degradations.ops:{name}"
    for name in (
        "gaussian_noise", "poisson_noise", "speckle", "jpeg", "gaussian_blur", "motion_blur", "sinc", "resize",
        "downscale", "quantize", "rain", "low_light", "sequence", "random_order", "choice",
    )
}  # fmt: skip
