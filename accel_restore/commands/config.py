"""Print the configuration that training would use, or the JSON schema of all configurations.

Naming another choice, such as optimizer.name=sgd, forgets all that the file says about the former one, also its lr.
"""

import json
import sys

from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.config.load import load_config, to_yaml
from accel_restore.config.schema import Config
from accel_restore.utils.words import counted

_EPOCHS = (  # keys that count epochs, in any section
    "until_epoch", "warmup_epochs", "hold_epochs", "period", "milestones", "step_size", "patience", "every_epochs",
    "starts_at_epoch",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the configuration or the schema, and return the exit code. Raises: UserError that lists all mistakes."""
    parser = ConfigurationParser(prog="accel-restore config", description=__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configurations")
    options = parser.parse_configuration(arguments)
    if options.schema:
        print(json.dumps(Config.model_json_schema(), indent=2), flush=True)
    else:
        escape = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
        config = load_config(options.config, options.overrides)
        notes = "".join(f"# {line}\n" for line in in_steps(config))
        print(notes + to_yaml(config, escape), end="", flush=True)
    return 0


def in_steps(config: Config) -> list[str]:
    """Return what the keys that count epochs mean in optimizer steps; nothing if an epoch is a pass over the images."""
    train, length = config.train, config.train.steps_per_epoch
    if length is None:
        return []
    steps = train.max_steps or train.epochs * length
    lines = [f"{counted(steps, 'step')} in {counted(-(-steps // length), 'epoch')} of {length}; in steps:"]
    sections = config.model_dump(include={"scheduler", "validation", "checkpoint"})
    if config.adversarial is not None:
        second = config.adversarial.model_dump()
        sections |= {"adversarial": second, "adversarial.scheduler": second["scheduler"]}
    sections |= {f"data.stages.{number}": stage.model_dump() for number, stage in enumerate(config.data.stages)}
    for section, values in sections.items():
        for key in filter(values.get, _EPOCHS):
            epochs = values[key] if isinstance(values[key], list) else [values[key]]
            if all(isinstance(number, int) for number in epochs):  # a schedule of your own may mean something else
                lines.append(f"  {section}.{key}: {', '.join(str(number * length) for number in epochs)}")
    return lines
