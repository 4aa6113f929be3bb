"""`accel-restore export`: write weights as ONNX or .pt2 for other programs, and compare the file with the model."""

import argparse
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from accel_restore.commands._outputs import check_writable
from accel_restore.errors import UserError
from accel_restore.inference import export as exported
from accel_restore.inference.restorer import Restorer, load
from accel_restore.tracking.console import Console
from accel_restore.utils.files import REMOVING, sync_folder, to_json

SHAPES = [(1, 64, 64), (1, 37, 50), (2, 33, 71)]  # (B, H, W) that are compared: without and with padding, odd sizes
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # largest difference of images in [0, 1]
_LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def main(arguments: list[str]) -> int:
    """Export weights and return the exit code: 1 if the file differs from the model, which is then discarded.

    Raises: UserError for invalid weights or options.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="accel-restore export", description=__doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="best.safetensors of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="model.onnx or model.pt2")
    parser.add_argument("--opset", type=int, metavar="N", help=f"ONNX opset, {exported.LOWEST_OPSET} or higher")
    parser.add_argument("--half", action="store_true", help="float16 weights, input and output: half the size")
    parser.add_argument("--size", type=_size, metavar="HxW", help="export for one image of this size only")
    parser.add_argument(
        "--check-size", type=_size, action="append", metavar="HxW", help="size to compare (may be repeated)"
    )
    options = parser.parse_args(arguments)
    is_onnx = _check_output(options.output, options.opset, options.weights)
    restorer = load(options.weights)
    shapes = [(1, *size) for size in ([options.size] if options.size else options.check_size or [])] or SHAPES
    try:
        with tempfile.TemporaryDirectory(prefix=f"{REMOVING}export-", dir=options.output.parent) as folder:
            return _export(restorer, options, is_onnx, shapes, Path(folder) / options.output.name)
    except UserError as error:
        raise UserError(f"{options.weights}: {error}") from error.__cause__
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written ({error.strerror or error})") from error


def _export(restorer: Restorer, options: argparse.Namespace, is_onnx: bool, shapes: list, staged: Path) -> int:
    console, start = Console(True), time.monotonic()
    kind = _write(restorer, options, is_onnx, staged)
    seconds = time.monotonic() - start
    try:
        run = exported.open_onnx(staged) if is_onnx else exported.open_pt2(staged)
        problem = _compare(run, restorer, shapes, options.half, console)
    except UserError:
        raise
    except Exception as error:  # of any type, from the runtime
        problem = f"cannot be run ({exported.first_line(error)})"
    if problem:
        print(f"accel-restore: {options.output}: {problem}; it is discarded", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in staged.parent.iterdir())
    for file in sorted(staged.parent.iterdir(), key=lambda file: file == staged):  # external weights first
        with file.open("rb") as content:
            os.fsync(content.fileno())
        file.replace(options.output.with_name(file.name))
    sync_folder(options.output.parent)
    console.log(f"{options.output}: {kind}, {size / 1e6:.1f} MB, in {seconds:.0f} s")
    return 0


def _write(restorer: Restorer, options: argparse.Namespace, is_onnx: bool, file: Path) -> str:
    """Write the file and return its format in words."""
    stored = {key: value for key, value in restorer.metadata.items() if key != "format"}  # that of safetensors
    metadata = {key: value if isinstance(value, str) else to_json(value) for key, value in stored.items()}
    traced = load(options.weights) if options.half else restorer  # which the file is compared with
    program = exported.trace(traced, options.size, options.half)
    if not is_onnx:
        exported.write_pt2(program, file, metadata)
        return "torch.export"
    opset = exported.write_onnx(program, file, metadata, options.opset, options.size is None)
    if options.opset not in (None, opset):
        raise UserError(f"cannot be written with --opset {options.opset}; use {opset}")
    return f"ONNX, opset {opset}"


def _compare(run: exported.Run, restorer: Restorer, shapes: list, half: bool, console: Console) -> str | None:
    """Return what is wrong with the outputs of a file, None if they are equal up to the tolerance."""
    limit, problem = (HALF_TOLERANCE if half else TOLERANCE), None
    for shape in shapes:
        found = exported.difference(run, restorer, shape, half)
        console.log(f"{' x '.join(map(str, shape))} (images, height, width): differs by at most {found:.1e}")
        if math.isnan(found):
            remedy = ": float16 overflows above 65,504; export it without --half" if half else ""
            problem = f"gives NaN or inf at {shape[1]}x{shape[2]}{remedy}"
        elif found > limit:
            problem = f"differs from the weights by {found:.1e}, more than {limit:g}, at {shape[1]}x{shape[2]}"
    return problem


def _check_output(output: Path, opset: int | None, weights: Path) -> bool:
    """Return whether the output is ONNX. Raises: UserError for invalid options, before anything is loaded."""
    if output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{output}: is neither .onnx nor .pt2; name it .onnx or .pt2")
    for file in (output, output.with_name(f"{output.name}.data")):  # where ONNX puts large weights
        check_writable(file, inputs=[weights])
    if output.suffix == ".pt2":
        if opset is not None:
            raise UserError("--opset: is for .onnx files; omit it")
        return False
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}; pip install 'accel-restore[onnx]'")
    import onnx

    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not exported.LOWEST_OPSET <= opset <= highest:
        raise UserError(f"--opset: must be from {exported.LOWEST_OPSET} to {highest}, not {opset}")
    return True


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write HEIGHTxWIDTH, such as 256x256")
    return int(found[1]), int(found[2])
