"""Whether a run is long enough to use every image of each training set, whose share may be small."""

from typing import Any

from accel_restore.config.data import Data
from accel_restore.config.sets import key_of
from accel_restore.data.mixture import MixedSet
from accel_restore.data_check.findings import Finding


def shares_of(mixed: tuple[MixedSet, ...], data: Data) -> dict[str, dict[str, Any]]:
    """Return each training set's share of the samples, its samples per pass, and its images, by its key."""
    period = sum(one.uses for one in mixed)
    return {
        key_of("data.train", name): {
            "share": one.uses / period,
            "samples": one.num_samples,
            "images": one.num_samples // (source.crops_per_image or data.crops_per_image),
        }
        for (name, source), one in zip(data.train_sets.items(), mixed, strict=True)
    }


def find_unseen(samples_of_run: int, sets: dict[str, dict[str, Any]]) -> list[Finding]:
    """Return a finding for each set with more images than a run of this many samples takes samples from it."""
    findings: list[Finding] = []
    if len(sets) == 1:
        return findings
    for key, one in sets.items():
        uses = int(one["share"] * samples_of_run)
        if uses < one["images"]:
            text = (
                f"{key}: a run of {samples_of_run:,} samples takes {uses:,} of them ({one['share']:.1%}) from its "
                f"{one['images']:,} images, so some images are never seen; raise its share, or train longer"
            )
            findings.append(Finding("unseen", text))
    return findings
