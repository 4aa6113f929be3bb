"""Models as files that run without this package: ONNX and torch.export's .pt2, both with the metadata.

Both come from one trace with dynamic sizes. Each file is read back and compared with the model.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from accel_restore.errors import UserError
from accel_restore.inference.apply import finite
from accel_restore.inference.restorer import Restorer

Run = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] to restored ones
METADATA = "metadata.json"  # inside a .pt2
AXES = {0: "batch", 2: "height", 3: "width"}
_EXAMPLE = (37, 50)  # an odd size, which the trace cannot take for a constant
LOWEST_OPSET = 18  # the first with antialiased resizing; torch translates to it


def trace(restorer: Restorer, size: tuple[int, int] | None, half: bool) -> ExportedProgram:
    """Return the graph of the restorer's model for any batch and image size, or for one image of `size` (H, W).

    With `half`, the model itself becomes float16.

    Raises: UserError if the model's code branches on sizes.
    """
    model = restorer.model.half() if half else restorer.model
    images = torch.rand(2 if size is None else 1, restorer.input_channels, *(size or _EXAMPLE)).to(_dtype(half))
    shapes = (dict.fromkeys(AXES, Dim.DYNAMIC),) if size is None else None
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # from the model, or one of many types from torch
        remedy = (
            "write its forward without branches on the size, or export it for one size: --size 256x256"
            if size is None
            else "torch.export cannot follow its forward; simplify it"
        )
        raise UserError(f"its model cannot be exported ({first_line(error)}); {remedy}") from error
    if size is None:
        # torch derives guards on the memory layout of intermediate tensors from the example, though kernels take any
        # layout. The guards would reject a single image or sizes without padding. The comparison finds any error.
        program._guards_code = []
    return program


def write_pt2(program: ExportedProgram, file: Path, metadata: dict[str, str]) -> None:
    """Write the graph for `torch.export.load`."""
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def open_pt2(file: Path) -> Run:
    """Return the function in a .pt2 file."""
    with quiet():
        return torch.export.load(file).module()


def write_onnx(program: ExportedProgram, file: Path, metadata: dict[str, str], opset: int | None, dynamic: bool) -> int:
    """Write the graph as ONNX, with weights of 1.5 GB or more in NAME.data next to it, and return its opset.

    Raises: UserError if a part of the graph has no translation.
    """
    shapes = (AXES,) if dynamic else None
    try:
        with quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=opset, dynamic_shapes=shapes, external_data=False, verbose=False,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"its model cannot be written as ONNX ({reason}); export it as .pt2") from error
    assert made is not None  # only the exporter without dynamo returns None
    made.model.metadata_props.update(metadata)
    made.save(file)
    return made.model.opset_imports[""]


def open_onnx(file: Path) -> Run:
    """Return the function in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])


def difference(run: Run, restorer: Restorer, shape: tuple[int, int, int], half: bool) -> float:
    """Return the largest difference between the outputs of a file and of the model, for images of shape (B, H, W).

    It is NaN if the file's output is NaN or inf, and inf if its shape differs.

    Raises: NonFiniteError if the model's output is NaN or inf.
    """
    batch, *size = shape
    images = torch.rand(batch, restorer.input_channels, *size, generator=torch.Generator().manual_seed(batch))
    images = images.to(_dtype(half))
    with torch.inference_mode():
        expected = finite(restorer.model(images.float()), "no")
        output = run(images).float()
    if not output.isfinite().all():
        return math.nan
    return float((output - expected).abs().max()) if output.shape == expected.shape else float("inf")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and logs of torch's exporters."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _dtype(half: bool) -> torch.dtype:
    return torch.float16 if half else torch.float32


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line:.200}"
