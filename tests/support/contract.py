"""What each architecture can do, measured on small networks: the table in accel_restore/models/README.md.

python tests/support/contract.py              measures all, and writes the table (an hour on one core)
python tests/support/contract.py hat span     measures two, and prints their rows

With --rows FILE, each row is added to FILE once it is measured, and rows that are there already are not measured again.
"""

import argparse
import io
import json
import re
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

from architecture_checks import COLUMNS, Subject, first_line

from accel_restore.models.architectures import model_names

README = Path(__file__).parents[2] / "accel_restore" / "models" / "README.md"
WANTED = (  # these must train
    "swinir", "hat", "dat", "rcan", "realplksr", "span", "compact", "esrgan", "atd", "drct", "nafnet", "scunet",
    "drunet", "uformer",
)  # fmt: skip
BEGIN, END = "<!-- contract: written by tests/support/contract.py -->\n", "<!-- end of contract -->\n"


def measure(name: str, folder: Path, columns: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the cells of an architecture's row, and the reasons of each that is not "yes"."""
    subject, cells = Subject(name, folder), {}
    for column in columns:
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                cells[column] = COLUMNS[column](subject)
        except Exception as error:
            cells[column], subject.reasons[column] = "no", first_line(error)
            if column == "scales":
                break
    return {column: cells.get(column, "–") for column in columns}, subject.reasons


def names() -> list[str]:
    """Return the names of all models, ours first."""
    return list(model_names())


def table(rows: dict[str, tuple[dict[str, str], dict[str, str]]]) -> str:
    """Return the table in Markdown, followed by the reasons."""
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| `{name}` | " + " | ".join(cells.values()) + " |" for name, (cells, _) in rows.items()]
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, (_, why) in rows.items():
        for column, reason in why.items():
            same = reason.replace(f" '{name}'", "")
            reasons[f"{column}: {same}"].append(f"`{name}`")
    notes = [f"- {', '.join(names)}; {reason}" for reason, names in reasons.items()]
    return "\n".join([*lines, "", *notes, ""])


def read_table() -> dict[str, dict[str, str]]:
    """Return the cells of the table in the README, by model and column."""
    text = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def main(chosen: list[str], file: Path | None) -> None:
    """Measure; write the table if all models were measured."""
    rows = {}
    if file is not None and file.exists():
        rows = {name: tuple(row) for name, row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    for name in chosen or names():
        if name in rows:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, Path(folder), list(COLUMNS))
        print(f"{name}: {rows[name]} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([name, rows[name]]) + "\n")
    rows = {name: rows[name] for name in chosen or names()}
    if chosen:
        print(table(rows))
        return
    text = README.read_text(encoding="utf-8")
    README.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: BEGIN + "\n" + table(rows) + "\n" + END, text, flags=re.S))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="default: all")
    parser.add_argument("--rows", type=Path, help="a file for the rows")
    options = parser.parse_args()
    main(options.model, options.rows)
