"""Training speed on a GPU, in one table: the trainer against a bare loop, eager and compiled, in bf16, from PNG pairs.

    python tests/gpu/speed_table.py OUT

takes about 12 minutes on one GPU. OUT/speed.md has a row for each network measured so far, even if the script is
stopped early. OUT/*.json hold the records of `accel-restore bench train`. `--tests` first runs all tests that
need a GPU. `--dry` tries everything with tiny networks on the CPU.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from photographs import photograph  # noqa: E402
from runs import clean_environment  # noqa: E402

NETWORKS: dict[str, dict[str, Any]] = {  # batch size and crops as in the papers, as far as 80 GB hold
    "NAFNet-32": {"model": {"name": "nafnet", "width": 32}, "data": {"batch_size": 32}},
    "UNet-32": {"model": {"name": "unet", "width": 32}, "data": {"batch_size": 32}},
    "Restormer": {"model": {"name": "restormer"}, "data": {"batch_size": 8, "patch_size": 128}},
    "HAT-S x4": {"model": {"name": "hat", "preset": "hat_s"}, "data": {"batch_size": 8, "scale": 4}},
    "UNet-32, adversarial": {
        "model": {"name": "unet", "width": 32},
        "data": {"batch_size": 16},
        "adversarial": {"discriminator": {"name": "unet_sn"}, "weight": 0.1},
    },
}
TINY: dict[str, dict[str, Any]] = {  # for --dry
    "NAFNet-32": {"width": 4, "encoder_blocks": [1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1]},
    "UNet-32": {"width": 4},
    "Restormer": {"width": 8, "blocks": [1, 1, 1, 1], "refinement_blocks": 1},
    "HAT-S x4": {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4, "squeeze_factor": 4},
    "UNet-32, adversarial": {"width": 4},
}
COLUMNS = ("network", "compiled", "samples/s", "bare loop", "trainer/bare", "waiting", "peak memory, GB")
MODES = {"no": "false", "yes": "true", "max-autotune": "max-autotune-no-cudagraphs"}


def make_pairs(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write `count` photographs of a size (width, height): clean, noisy, and clean with a quarter of the side."""
    random = np.random.default_rng(0)
    for kind in ("gt", "noisy", "small"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        photo = Image.fromarray(photograph(("astronaut", "coffee", "chelsea")[index % 3])).resize(size)
        noise = random.normal(0, 15, (*size[::-1], 3))
        photo.save(folder / "gt" / f"{index}.png")
        Image.fromarray(np.clip(photo + noise, 0, 255).astype(np.uint8)).save(folder / "noisy" / f"{index}.png")
        photo.resize((size[0] // 4, size[1] // 4)).save(folder / "small" / f"{index}.png")


def configuration(name: str, folder: Path, dry: bool) -> dict[str, Any]:
    """Return the configuration of a run of one of the networks on the pairs in `folder`."""
    chosen = NETWORKS[name]
    model, data = dict(chosen["model"]), {"patch_size": 256, **chosen["data"]}
    if dry:
        model = {"name": model["name"], **TINY[name]}
        data |= {"batch_size": 2, "patch_size": 32}
    input = folder / ("small" if data.get("scale") else "noisy")
    data |= {"train": {"input": str(input), "gt": str(folder / "gt")}, "val_fraction": 0.25, "crops_per_image": 64}
    data |= {"cache_dir": str(folder / "cache")}
    section = {"adversarial": chosen["adversarial"]} if "adversarial" in chosen else {}
    if section and dry:
        section = {"adversarial": {"discriminator": {"name": "unet_sn", "width": 4}}}
    return {
        "run": {"name": "speed", "dir": str(folder / "runs")},
        "data": data,
        "model": model,
        "train": {"mixed_precision": "bf16", "channels_last": model["name"] != "hat"},
        **section,
    }


def measure(config: dict[str, Any], compiled: str, seconds: float, out: Path, dry: bool, limit: float) -> dict | None:
    """Return what `bench train` records for a configuration; None if it fails or takes more than `limit` seconds."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accel_restore.cli", "bench", "train", "--config", str(file)]
    command += [f"train.compile={compiled}", "--seconds", str(seconds), "--json", str(out), *["--cpu"] * dry]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    with out.with_suffix(".log").open("w") as log:
        try:
            subprocess.run(command, check=True, timeout=limit, stdout=log, stderr=log, env=environment, cwd=ROOT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{out.stem}: {type(error).__name__}, see {log.name}", flush=True)
            return None
    return json.loads(out.read_text("utf-8"))


def row_of(name: str, compiled: str, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of the table for a record of `bench train`."""
    ratio, phases = record["ratio"], record["phases"]
    return (
        name,
        compiled,
        f"{record['samples_per_second']:.1f}",
        f"{record['bare_samples_per_second']:.1f}",
        f"{ratio['median']:.3f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}, {ratio['pairs']} pairs)",
        f"{100 * phases['waiting for data'] / sum(phases.values()):.1f} %",
        f"{max(rank['peak_memory'] for rank in record['ranks']) / 1e9:.1f}",
    )


def main(arguments: list[str]) -> int:
    """Measure all networks and return the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="for each of the trainer, the bare loop and the phases"
    )
    parser.add_argument("--limit", type=float, default=150.0, help="seconds for one row of the table")
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compiled", nargs="*", choices=MODES, default=["no", "yes"])
    parser.add_argument("--tests", action="store_true", help="first run all tests that need a GPU")
    parser.add_argument("--dry", action="store_true", help="tiny networks on the CPU")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tests:
        with (options.out / "tests.log").open("w") as log:
            command = [sys.executable, "-m", "pytest", str(ROOT / "tests"), "-m", "gpu", "-q", "-n", "0"]
            subprocess.run(command, stdout=log, stderr=log, cwd=ROOT)
    size, count = ((160, 128), 4) if options.dry else ((1020, 676), 24)
    make_pairs(options.out / "pairs", size, count)
    rows, failed = [COLUMNS, ("---",) * len(COLUMNS)], 0
    for compiled in options.compiled:  # the fast ones first
        for name in options.only:
            out = options.out / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{compiled}.json"
            config = configuration(name, options.out / "pairs", options.dry)
            record = measure(config, MODES[compiled], options.seconds, out, options.dry, options.limit)
            failed += record is None
            if record is not None:
                rows.append(row_of(name, compiled, record))
                print(" | ".join(rows[-1]), flush=True)
                table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
                (options.out / "speed.md").write_text(table + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
