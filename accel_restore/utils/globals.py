"""What a training changes for the whole process, and its restoration."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from accel_restore.utils.imports import import_dynamo


@contextmanager
def restored_globals() -> Iterator[None]:
    """Restore the settings of Python, torch, numpy and Pillow at the end of the block, also after an exception.

    Not restored: malloc keeps freed memory (on CPUs), and with several ranks the process group stays joined.
    """
    environment, draws, numpy_draws = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002  the caller's
    torch_draws = torch.get_rng_state()
    cuda_draws = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, dynamo = torch.backends.cudnn, import_dynamo().config
    benchmark, deterministic, recompile_limit = cudnn.benchmark, cudnn.deterministic, dynamo.recompile_limit
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    dtype, max_pixels = torch.get_default_dtype(), Image.MAX_IMAGE_PIXELS
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(draws)
        np.random.set_state(numpy_draws)  # noqa: NPY002
        torch.set_rng_state(torch_draws)
        if cuda_draws:
            torch.cuda.set_rng_state_all(cuda_draws)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        cudnn.benchmark, cudnn.deterministic, dynamo.recompile_limit = benchmark, deterministic, recompile_limit
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        Image.MAX_IMAGE_PIXELS = max_pixels
