"""One uninterrupted run, shared by the tests of a session that stop, kill or move a run and continue it."""

import shutil
from pathlib import Path

import forked
from filelock import FileLock
from runs import last_weights, make_photos, run_folder, small_config
from torch import Tensor

PHOTOS = 30, 4  # training, validation
STEPS = 8  # per epoch, the last one partial; there are two epochs


def configuration(photos: tuple[Path, Path], out: Path, ranks: int = 1, name: str = "small", **sections: dict) -> dict:
    """Return a configuration with two micro-batches per step that keeps all commits: steps 3, 6, 8, 9, 12, 15, 16."""
    train = {"global_batch_size": 4, "ema_decay": 0.9, **sections.pop("train", {})}
    checkpoint = {"every_steps": 3, "keep": 100, **sections.pop("checkpoint", {})}
    data = {"batch_size": 2 // ranks, **sections.pop("data", {})}
    return small_config(*photos, out, run={"name": name}, data=data, train=train, checkpoint=checkpoint, **sections)


class Reference:
    """The photographs and the uninterrupted runs of `configuration`, made by the first worker that needs them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.photos = (folder / "train", folder / "val")
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                for side, count, seed in zip(self.photos, PHOTOS, (0, 1), strict=True):
                    make_photos(side, count, seed)

    def run(self, ranks: int = 1) -> dict:
        """Return the configuration of the finished run. Its folder must not be changed."""
        config = configuration(self.photos, self.folder, ranks, name=f"ranks{ranks}")
        with FileLock(self.folder / f"ranks{ranks}.lock"):
            if not run_folder(config).exists():
                assert forked.run(config, ranks=ranks, mode="no_curves") == [0] * ranks, forked.printed(config)
        return config

    def weights(self, ranks: int = 1) -> dict[str, Tensor]:
        """Return the weights at the end of the run."""
        return last_weights(self.run(ranks))

    def copy(self, out: Path) -> dict:
        """Return the configuration of a copy of the finished one-rank run. A test may change the copy."""
        config = configuration(self.photos, out)
        shutil.copytree(run_folder(self.run()), run_folder(config))
        return config
