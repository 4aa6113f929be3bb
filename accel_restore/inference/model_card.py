"""The model card of weights on the Hugging Face Hub, and their configuration without paths of this machine.

Pure functions of metadata and configurations: nothing here reads files or connects to the Hub.
"""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from accel_restore import __version__
from accel_restore.config.sets import named_sets
from accel_restore.metrics.format import TITLES, format_score, metrics_of
from accel_restore.models.architectures import model_names
from accel_restore.utils.redaction import without_paths
from accel_restore.utils.words import counted

CONFIG, SAMPLES = "config.yaml", "samples.png"
PACKAGE = "accel-restore"  # the name for pip
_TASKS = {  # the task that undoes each degradation
    "gaussian_noise": "denoising", "poisson_noise": "denoising", "speckle": "denoising", "jpeg": "jpeg-artifacts",
    "gaussian_blur": "deblurring", "motion_blur": "deblurring", "rain": "deraining", "low_light": "low-light",
    "downscale": "super-resolution",
}  # fmt: skip


def portable_config(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a run's configuration for others, without paths, secrets, and settings of where the run was written."""
    tree = without_paths(tree)
    if isinstance(tree.get("run"), dict):
        tree["run"] = {key: value for key, value in tree["run"].items() if key not in ("dir", "resume")}
    if isinstance(tree.get("data"), dict):
        tree["data"].pop("cache_dir", None)
    tree.pop("tracking", None)
    return tree


def card(
    repo: str, metadata: dict[str, Any], config: dict[str, Any] | None, license: str | None, samples: str | None
) -> ModelCard:
    """Return the model card; `config` is portable, `samples` describes the picture; both may be None.

    Scores mean nothing without their protocol, so the card gives both.
    """
    tasks, model = _tasks(metadata, config), metadata["model"]["name"]
    info = ModelCardData(
        license=license,
        library_name="accel_restore",
        pipeline_tag="image-to-image",
        tags=["image-restoration", *tasks, *([model] if model in model_names() else [])],
        model_name=repo.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type="image-to-image", task_name=(tasks or ["image restoration"])[0].replace("-", " "),
                dataset_type=re.sub(r"[^\w./-]+", "-", dataset).strip("-").lower(), dataset_name=dataset,
                metric_type=name, metric_name=TITLES.get(name, name), metric_value=round(value, 4),
            )
            for dataset, scores in _sets(metadata, config).items() for name, value in _scores(scores).items()
        ] or None,
    )  # fmt: skip
    parts = [
        f"# {repo.split('/')[-1]}",
        _what(metadata, tasks),
        f"![input, output, and the clean image]({SAMPLES})\n\n{samples}" if samples else "",
        "## Use\n\n" + _use(repo, metadata),
        "## Training\n\n" + _training(metadata, config),
        "## Scores\n\n" + _score_table(metadata, config),
        "## Reproduce\n\n" + _reproduce(metadata, config),
        "## License\n\n"
        + (f"`{license}`" if license else "The author has not named a license; ask before you use it."),
    ]
    return ModelCard(f"---\n{info}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _tasks(metadata: dict[str, Any], config: dict[str, Any] | None) -> list[str]:
    data = (config or {}).get("data") or {}
    names = [step.get("name") for source in _sources(data).values() for step in _steps(source, data)]
    first = ["super-resolution"] if metadata["data"].get("scale", 1) > 1 else []
    return list(dict.fromkeys([*first, *(_TASKS[name] for name in names if name in _TASKS)]))


def _what(metadata: dict[str, Any], tasks: list[str]) -> str:
    data = metadata["data"]
    scale, channels = data.get("scale", 1), data["channels"]
    kind = {1: "gray", 3: "colour"}.get(channels, f"{channels}-channel")
    taken = f"a {data['input_channels']}-channel image" if "input_channels" in data else "an image"
    low, high = data.get("range", (0, 1))
    floats = f" It sees the float pixels {low:g} and {high:g} as 0 and 1." if "pixels" in data else ""
    task = " and ".join(task.replace("-", " ") for task in tasks) or "restoration"
    size = f"{scale} times larger" if scale > 1 else "of the same size"
    return (
        f"A model for **{task}** of {kind} images, trained with `accel_restore`. It takes {taken} of any size and "
        f"returns the restored image, {size}.{floats} Architecture: {_architecture(metadata)}."
    )


def _architecture(metadata: dict[str, Any]) -> str:
    model = metadata["model"]
    arguments = ", ".join(f"{key} {value}" for key, value in model["arguments"].items())
    return f"`{model['name']}`" + (f" ({arguments})" if arguments else "")


def _use(repo: str, metadata: dict[str, Any]) -> str:
    name, needs, extra = metadata["model"]["name"], "", ""
    if name == "spandrel":
        extra = "[spandrel]"  # the architecture comes from it
    elif ":" in name:
        needs = f"\n\nIts class, `{name}`, is not part of accel_restore; install its package, too."
    data = metadata["data"]
    is_picture = {data["channels"], data.get("input_channels", data["channels"])} <= {1, 3} and "pixels" not in data
    if is_picture:
        source, suffix = "from PIL import Image", "png"
        code = 'restorer(Image.open("photo.png")).save("restored.png")'
    else:
        source, suffix = "import numpy as np", "npy"
        code = 'np.save("restored.npy", restorer(np.load("photo.npy")))  # (height, width, channels)'
    return f"""    pip install '.{extra}'

in the source folder of {PACKAGE} {__version__} or later, then

```python
import accel_restore
{source}

restorer = accel_restore.load("{repo}")
{code}
```

or `accel-restore restore {repo} photo.{suffix} -o restored.{suffix}`.{needs}"""


def _training(metadata: dict[str, Any], config: dict[str, Any] | None) -> str:
    if config is None:
        return "Unknown: the weights were uploaded without their run."
    data, train = config["data"], config.get("train", {})
    lines = []
    for name, source in _sources(data).items():
        of = f" of {name}" if name else ""
        share = source.get("share")
        lines.append(f"- **images{of}**: {_source(source)}" + (f"; {share:.4g} of the samples" if share else ""))
        if made := "; ".join(_step(step, " to ") for step in _steps(source, data)):
            part = source.get("synthetic_share")
            some = f" for {part:.4g} of these samples" if part else ""
            lines.append(f"- **input{of}**: made from the clean images by {made}{some}")
    lines += [
        f"- **crops**: {data.get('patch_size')} pixels, {', '.join(data.get('augment', [])) or 'not augmented'}",
        f"- **loss**: {', '.join(f'{name} ({_plain(weight)})' for name, weight in config.get('loss', {}).items())}",
        f"- **optimizer**: {_step(config.get('optimizer', {}))}",
        f"- **schedule**: {_step(config.get('scheduler', {}))}, {_length(train)}",
        f"- **precision**: {train.get('mixed_precision')}",
        f"- **these weights**: the best of the run by {config.get('validation', {}).get('monitor')}: epoch "
        f"{int(metadata.get('epoch', -1)) + 1}, optimizer step {metadata.get('step')}"
        + (", averaged over steps (EMA)" if train.get("ema_decay") else ""),
    ]
    return "\n".join(lines)


def _length(train: dict[str, Any]) -> str:
    """Return how long the run was, as its configuration says."""
    of_steps = "max_steps", "optimizer step", "in epochs of"
    key, noun, of = of_steps if train.get("max_steps") else ("epochs", "epoch", "of")
    each = f" {of} {counted(train['steps_per_epoch'], 'step')}" if train.get("steps_per_epoch") else ""
    return counted(train[key], noun) + each if key in train else "of unknown length"


def _sources(data: dict[str, Any], kind: str = "train") -> dict[str, dict[str, Any]]:
    """Return the training or validation sets of a configuration by name."""
    found = data.get(kind)
    return {name: one or {} for name, one in named_sets(found).items()} if isinstance(found, dict) else {}


def _steps(source: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the degradation that makes the inputs of a set; empty if all are files."""
    if source.get("input") is not None and source.get("synthetic_share") is None:
        return []
    return source.get("degradation") or data.get("degradation") or []


def _source(source: dict[str, Any]) -> str:
    if source.get("dataset"):
        return f"dataset `{source['dataset']}`, split {source.get('split') or 'train'}"
    sides = [f"{side} {_places(source[side])}" for side in ("input", "gt") if source.get(side)]
    return ", ".join(sides) + ("" if source.get("input") else " (clean images only)")


def _places(places: str | list[str]) -> str:
    places = [places] if isinstance(places, str) else places
    more = f" and {len(places) - 6} more" if len(places) > 6 else ""
    return ", ".join(f"`{place}`" for place in places[:6]) + more


def _step(section: dict[str, Any], between: str = ", ") -> str:
    """Return a section's name and settings; `between` joins the items of lists."""
    given = {key: value for key, value in section.items() if key != "name" and value not in (None, [], False)}
    settings = ", ".join(f"{key} {_plain(value, between)}" for key, value in given.items())
    return f"{section.get('name')}" + (f" ({settings})" if settings else "")


def _plain(value: Any, between: str = ", ") -> str:
    if isinstance(value, dict):
        return _step(value, between) if "name" in value else ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return between.join(_plain(item, between) for item in value) if isinstance(value, list) else str(value)


def _sets(metadata: dict[str, Any], config: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the scores by the names of validation sets; a set without a name is named after its images."""
    metrics = metadata["metrics"]
    named = metrics.get("sets")
    sets = {name: one for name, one in named.items() if isinstance(one, dict)} if isinstance(named, dict) else {}
    return sets or {_validation_name(config): metrics}


def _scores(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in metrics_of(found) if isinstance(found[name], int | float)}


def _validation_name(config: dict[str, Any] | None) -> str:
    source = ((config or {}).get("data") or {}).get("val")
    if config is None:
        return "validation images of the run"
    if source is None:
        return f"held-out {config['data'].get('val_fraction', 0.1):.0%} of the training images"
    places = source.get("dataset") or source.get("gt")
    places = [places] if isinstance(places, str) else places
    return ", ".join(place.rstrip("/").split("/")[-1] for place in places[:4]) + (", ..." if len(places) > 4 else "")


def _score_table(metadata: dict[str, Any], config: dict[str, Any] | None) -> str:
    """Return a table of the scores, and the protocol that they were measured by."""
    metrics, sets = metadata["metrics"], _sets(metadata, config)
    protocol = metrics.get("protocol") or {}
    scores = _scores(metrics)
    if not scores:
        return "No scores are stored with these weights."
    if are_named := metrics not in sets.values():
        lines = _table_of_sets(sets | ({"mean of the sets": metrics} if len(sets) > 1 else {}), list(scores))
    else:
        lines = [f"On {next(iter(sets))}:", "", "| metric | input | output | measured as |", "|---|---|---|---|"]
        for name, value in scores.items():
            shown, title = _before(metrics, name), TITLES.get(name, name)
            lines.append(f"| {title} | {shown} | **{format_score(name, value)}** | {protocol.get(name, '-')} |")
    facts = _protocol_facts(protocol)
    if are_named:
        facts |= {TITLES.get(name, name): protocol.get(name) for name in scores}
    for name, one in sets.items() if are_named else ():
        own = _protocol_facts(one.get("protocol") or {})
        facts[name] = "; ".join(f"{what}: {fact}" for what, fact in own.items() if fact and fact != facts.get(what))
    protocol_lines = [f"- **{name}**: {fact}" for name, fact in facts.items() if fact]
    return "\n".join([*lines, "", "Scores were measured by this protocol:", "", *protocol_lines])


def _table_of_sets(sets: dict[str, dict[str, Any]], metrics: list[str]) -> list[str]:
    heads = [f"{TITLES.get(name, name)}{of}" for name in metrics for of in (" of input", "")]
    lines = [f"| set | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, scores in sets.items():
        cells = [cell for metric in metrics for cell in (_before(scores, metric), _after(scores, metric))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _before(scores: dict[str, Any], metric: str) -> str:
    before = scores.get(f"input_{metric}")
    return format_score(metric, before) if isinstance(before, int | float) else "-"


def _after(scores: dict[str, Any], metric: str) -> str:
    after = scores.get(metric)
    return f"**{format_score(metric, after)}**" if isinstance(after, int | float) else "-"


def _protocol_facts(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return what a protocol says, in words."""
    border = protocol.get("crop_border")
    made = re.sub(r"data\.degradation\b", "the degradation of training", protocol.get("input") or "")
    return {
        "colours": protocol.get("channels"),
        "values": protocol.get("range"),
        "border": f"{border} pixels at each side are ignored" if border else "the whole image is scored",
        "network sees": protocol.get("network"),
        "input": re.sub(r"data\.(train|val)\.[\w.-]*degradation", "a degradation of its own", made),
        "degradation": "; ".join(_step(step, " to ") for step in protocol.get("degradation", [])),
        "average": protocol.get("average"),
    }


def _reproduce(metadata: dict[str, Any], config: dict[str, Any] | None) -> str:
    made = f"Made with accel_restore {metadata.get('version')}"
    check = f"The sha256 of the weights: `{metadata.get('sha256')}`."
    if config is None:
        return f"{made}. {check}"
    seed = config.get("run", {}).get("seed", 0)
    return f"""{made}, seed {seed}. [{CONFIG}]({CONFIG}) is its configuration. Absolute paths in it
are reduced to their last names. Name the data folders of your machine.

    accelerate launch accel_restore/train.py --config {CONFIG}

It gives the same samples, crops and noise on any number of devices. {check}"""
