"""How people read a score, wherever one is shown: the console, tables, pictures, the report, the model card."""

TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}


def format_score(name: str, value: float, signed: bool = False) -> str:
    """A score with its unit: "25.00 dB" of a PSNR, else four decimals, of a loss four digits.

    `name` may also be that of the input's score or of a difference: input_psnr, psnr_2, psnr_difference.
    """
    sign = "+" if signed else ""
    if "psnr" in name:
        return f"{value:{sign}.2f} dB"
    return f"{value:{sign}#.4g}" if "loss" in name else f"{value:{sign}.4f}"


def titled_score(name: str, value: float) -> str:
    """A score with its unit and its name: "25.00 dB PSNR"."""
    return f"{format_score(name, value)} {TITLES.get(name, name)}"
