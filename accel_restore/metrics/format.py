"""The form of a score wherever it is shown: console, tables, pictures, report, model card."""

TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}


def format_score(name: str, value: float, signed: bool = False) -> str:
    """Return a score with its unit: a PSNR as "25.00 dB", a loss with four digits, any other with four decimals.

    `name` may also name the input's score or a difference: input_psnr, psnr_2, psnr_difference.
    """
    sign = "+" if signed else ""
    if "psnr" in name:
        return f"{value:{sign}.2f} dB"
    return f"{value:{sign}#.4g}" if "loss" in name else f"{value:{sign}.4f}"


def titled_score(name: str, value: float) -> str:
    """Return a score with its unit and title, such as "25.00 dB PSNR"."""
    return f"{format_score(name, value)} {TITLES.get(name, name)}"
