"""Groups of command-line arguments that several commands share."""

import argparse

from accel_restore.errors import UserError


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a configuration."""
    parser.add_argument("--config", metavar="FILE", help="YAML configuration (default: configs/demo.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=4")


def add_device(parser: argparse.ArgumentParser, precision: str | None = "no") -> None:
    """Add the arguments for the device and the precision of a network; the default None is that of `--run`."""
    default = "no, which is float32" if precision else "with --run that of the run, else no, which is float32"
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--device", help="such as cuda:1 (default: a GPU if available, one per process)")
    group.add_argument("--cpu", action="store_const", const="cpu", dest="device", help="the same as --device cpu")
    parser.add_argument(
        "--precision",
        choices=["no", "bf16", "fp16", "auto"],
        default=precision,
        help=f"precision of the network (default: {default})",
    )


def add_tiles(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the arguments for tiles and the self-ensemble."""
    meaning = "auto: tiles if memory is short" if default == "auto" else "as in the protocol"
    parser.add_argument(
        "--tile",
        type=_tile,
        default=default,
        metavar="N",
        help=f"side of tiles in input pixels, none or auto (default: {meaning})",
    )
    parser.add_argument("--tile-overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (64)")
    parser.add_argument(
        "--self-ensemble",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the mean over 8 flips and rotations: 8 times slower, slightly better",
    )


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the largest image that is read."""
    help = "reject larger images as decompression bombs"
    parser.add_argument("--max-pixels", type=_max_pixels, metavar="N", help=help)


def _max_pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError("--max-pixels: must be a whole number above 0")
    return int(text)


def _tile(text: str) -> int | str:
    return text if text in ("auto", "none") else int(text)
