"""Names that a configuration can use. Each maps to an import path, so that names are checked without heavy imports.

To add a loss, a metric, a model, a discriminator or a degradation, define it and add a line here.
"""

LOSSES = {
    "l1": "accel_restore.losses.pixel:l1",
    "mse": "accel_restore.losses.pixel:mse",
    "charbonnier": "accel_restore.losses.pixel:charbonnier",
    "psnr": "accel_restore.losses.pixel:psnr",
    "ssim": "accel_restore.losses.pixel:ssim",
    "ms_ssim": "accel_restore.losses.pixel:ms_ssim",
    "fft": "accel_restore.losses.pixel:fft",
    "gradient": "accel_restore.losses.pixel:gradient",
    "edge": "accel_restore.losses.pixel:edge",
    "perceptual": "accel_restore.losses.perceptual:Perceptual",
    "lpips": "accel_restore.losses.perceptual:LPIPS",
    "dists": "accel_restore.losses.perceptual:DISTS",
    "contextual": "accel_restore.losses.contextual:Contextual",
    "ldl": "accel_restore.losses.pixel:ldl",
    "focal_frequency": "accel_restore.losses.pixel:focal_frequency",
}

METRICS = {
    "psnr": "accel_restore.metrics.psnr_ssim:PSNR",
    "ssim": "accel_restore.metrics.psnr_ssim:SSIM",
    "lpips": "accel_restore.metrics.perceptual:LPIPS",
    "dists": "accel_restore.metrics.perceptual:DISTS",
}

MODELS = {
    "unet": "accel_restore.models.unet:UNet",
    "dncnn": "accel_restore.models.dncnn:DnCNN",
    "nafnet": "accel_restore.models.nafnet:NAFNet",
    "restormer": "accel_restore.models.restormer:Restormer",
}

DISCRIMINATORS = {
    "unet_sn": "accel_restore.models.discriminators:UNetSN",
    "patch": "accel_restore.models.discriminators:Patch",
    "vgg": "accel_restore.models.discriminators:VGG",
}

DEGRADATIONS = {
    name: f"accel_restore.data.degradations.ops:{name}"
    for name in (
        "gaussian_noise", "poisson_noise", "speckle", "jpeg", "gaussian_blur", "motion_blur", "sinc", "resize",
        "downscale", "quantize", "rain", "low_light", "sequence", "random_order", "choice",
    )
}  # fmt: skip
