"""Print the configuration that training would use, or the JSON schema of all configurations.

Naming another choice, such as optimizer.name=sgd, forgets all that the file says about the former one, also its lr.
"""

import json
import sys

from accel_restore.commands._arguments import ConfigurationParser
from accel_restore.config.load import load_config, to_yaml
from accel_restore.config.schema import Config


def main(arguments: list[str]) -> int:
    """Print the configuration or the schema, and return the exit code. Raises: UserError that lists all mistakes."""
    parser = ConfigurationParser(prog="accel-restore config", description=__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configurations")
    options = parser.parse_configuration(arguments)
    if options.schema:
        print(json.dumps(Config.model_json_schema(), indent=2), flush=True)
    else:
        escape = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
        print(to_yaml(load_config(options.config, options.overrides), escape), end="", flush=True)
    return 0
