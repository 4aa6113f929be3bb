"""`accel-restore convert`: read an option file of BasicSR, of a trainer made from it, or of traiNNer-redux.

Options that cannot be carried over become comments, with the reasons. What is still to do is listed on stderr.
"""

import argparse
import shlex
import sys
from pathlib import Path

from accel_restore.commands._outputs import check_new, write_output
from accel_restore.config.convert.check import missing_files, settle
from accel_restore.config.convert.draft import LOST
from accel_restore.config.convert.options import convert
from accel_restore.config.convert.write import to_text
from accel_restore.config.load import config_from, read_mapping
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError
from accel_restore.models.architectures import model_names
from accel_restore.models.catalogue import arguments_of
from accel_restore.models.presets import presets_of
from accel_restore.utils.words import counted


def main(arguments: list[str]) -> int:
    """Write the configuration and return the exit code. Raises: UserError if the file is not an option file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="accel-restore convert", description=__doc__)
    parser.add_argument("options", type=Path, metavar="OPTIONS", help="option file, such as train_EDSR.yml")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="configuration to write (default: print it)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.parse_args(arguments)
    check_new(options.output, options.overwrite, inputs=[options.options])
    where = str(options.options)
    if (kind := options.options.suffix.lower()) in (".json", ".toml"):
        raise UserError(f"{where}: is a {kind} file; convert reads the YAML files of BasicSR and traiNNer-redux")
    draft = convert(read_mapping(options.options), where, model_names(), presets_of, arguments_of)
    config = settle(draft, where)
    output = str(options.output or "mine.yaml")
    text = to_text(draft, options.options.name, start_command(shlex.quote(output), draft.peek("num_gpu")))
    config_from(parse_yaml(text, output), (), output)  # what was written is what was checked
    if options.output:
        write_output(options.output, text)
    else:
        print(text, end="", flush=True)
    lost = sum(len(note.options) for note in draft.notes if note.kind == LOST)
    todo = [*draft.todo, *(f"{line} is not on this machine" for line in missing_files(config))]
    print(
        f"{options.options.name}: {counted(len(draft.values), 'option')}, of which {lost} could not be carried over "
        "(# not carried)",
        *(f"  to do: {line}" for line in todo),
        sep="\n",
        file=sys.stderr,
    )
    return 0


def start_command(config: str, devices: object) -> str:
    """Return the command that trains on this number of GPUs."""
    if devices == 0:
        return f"accel-restore train --cpu --config {config}"
    if isinstance(devices, int) and devices > 1:
        return (
            f"accelerate launch --config_file launch/multi_gpu.yaml --num_processes {devices} accel_restore/train.py "
            f"--config {config}"
        )
    return f"accel-restore train --config {config}"
