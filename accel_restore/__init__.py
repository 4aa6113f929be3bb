"""accel_restore: a distributed trainer for paired image restoration."""

__version__ = "0.1.0"

__all__ = ["load"]


def __getattr__(name: str):
    if name == "load":  # imports torch, so only when it is asked for
        from accel_restore.restorer import load

        return load
    raise AttributeError(f"module 'accel_restore' has no attribute '{name}'")
