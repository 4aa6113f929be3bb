"""Models as files that run without this package: ONNX, and what torch.export saves. Both hold the metadata, too.

One trace with open sizes serves both; whatever is made is read again and compared with the model.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from accel_restore.errors import UserError
from accel_restore.inference.restorer import Restorer

Run = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] to restored ones
METADATA = "metadata.json"  # within a .pt2
AXES = {0: "batch", 2: "height", 3: "width"}
_EXAMPLE = (37, 50)  # a size that is no multiple of anything, so that nothing of it is taken for a constant
LOWEST_OPSET = 18  # the first with antialiased enlarging, and that of torch's own translations


def trace(restorer: Restorer, size: tuple[int, int] | None, half: bool) -> ExportedProgram:
    """The graph of the restorer's model for images of any number and size, or one image of `size` (H, W).

    Raises: UserError where its code decides by sizes what to do.
    """
    model = copy.deepcopy(restorer.model).half() if half else restorer.model
    images = torch.rand(2 if size is None else 1, restorer.channels, *(size or _EXAMPLE)).to(_dtype(half))
    shapes = (dict.fromkeys(AXES, Dim.DYNAMIC),) if size is None else None
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # a model's own, or any of torch's many
        remedy = (
            "write its forward so that no branch depends on the size, or export it for one size: --size 256x256"
            if size is None
            else "torch.export cannot follow its forward; simplify that"
        )
        raise UserError(f"its model cannot be exported ({first_line(error)}); {remedy}") from error
    if size is None:
        # Guards that torch has derived from the example about the memory layout of what lies between: eager kernels
        # take any. Kept, they would refuse one image, or sizes that need no padding. The comparison tells if not so.
        program._guards_code = []
    return program


def write_pt2(program: ExportedProgram, file: Path, metadata: dict[str, str]) -> None:
    """Write the graph for `torch.export.load`."""
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def open_pt2(file: Path) -> Run:
    with quiet():
        return torch.export.load(file).module()


def write_onnx(program: ExportedProgram, file: Path, metadata: dict[str, str], opset: int | None, opened: bool) -> int:
    """Write the graph as ONNX, beside it `NAME.data` with weights of 1.5 GB or more; the opset that it has.

    Raises: UserError where a part of it has no translation.
    """
    shapes = (AXES,) if opened else None
    try:
        with quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=opset, dynamic_shapes=shapes, external_data=False, verbose=False,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"its model cannot be written as ONNX ({reason}); export it as .pt2") from error
    made.model.metadata_props.update(metadata)
    made.save(file)
    return made.model.opset_imports[""]


def open_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])


def difference(run: Run, restorer: Restorer, shape: tuple[int, int, int], half: bool) -> float:
    """The largest difference between a file's output and the model's, for images in [0, 1] of shape (B, H, W)."""
    batch, *size = shape
    images = torch.rand(batch, restorer.channels, *size, generator=torch.Generator().manual_seed(batch))
    images = images.to(_dtype(half))
    with torch.inference_mode():
        expected = restorer.model(images.float())
        output = run(images).float()
    return float((output - expected).abs().max()) if output.shape == expected.shape else float("inf")


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, torch's exporters keep their advice to themselves."""
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
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said:.200}"
