"""accel_restore: a distributed trainer for paired image restoration."""

__version__ = "0.1.0"

__all__ = ["Callback", "fit", "load"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:  # these import torch, so they are imported on first use
    import random

    draws = random.getstate()  # rich draws a number when it is imported
    try:
        if name == "fit":
            from accel_restore.trainer.run import fit

            return fit
        if name == "Callback":
            from accel_restore.state import Callback

            return Callback
        if name == "load":
            from accel_restore.inference.restorer import load

            return load
    finally:
        random.setstate(draws)
    raise AttributeError(f"module 'accel_restore' has no attribute '{name}'")
