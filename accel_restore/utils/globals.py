"""What a training changes for the whole process, and its restoration."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from accel_restore.utils.imports import check_compiler_cache


@contextmanager
def restored_globals(compiles: bool) -> Iterator[None]:
    """At the end of the block, also after an exception, restore what training changes in Python, NumPy and torch.

    `compiles`: whether it changes settings of torch's compiler, whose import takes seconds.
    """
    environment, draws, numpy_draws = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002  the caller's
    torch_draws = torch.get_rng_state()
    cuda_draws = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    recompile_limit = None
    if compiles:
        check_compiler_cache()
        recompile_limit = torch._dynamo.config.recompile_limit
    threads, hooks = torch.get_num_threads(), (sys.excepthook, sys.exit)
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
        elif torch.cuda.is_initialized():  # since then; the caller's seed had yet to reach it
            torch.cuda.manual_seed_all(torch.initial_seed())
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        if recompile_limit is not None:
            torch._dynamo.config.recompile_limit = recompile_limit
        torch.set_num_threads(threads)  # a thread of the data loader sets it for threads to come, too
        sys.excepthook, sys.exit = hooks  # W&B replaces both
