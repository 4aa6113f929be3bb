"""`accel-restore cache`: list or delete the stores of decoded images that runs share."""

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from accel_restore.data.cache_folder import StoredSource, default_cache, delete_store, list_stores
from accel_restore.errors import UserError, raise_problems
from accel_restore.tracking.console import Console


def main(arguments: list[str]) -> int:
    """List the stores of a cache folder, or delete some; return the exit code.

    Raises: UserError if a folder or a name does not exist.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="accel-restore cache",
        description=f"{__doc__} A run that needs a deleted store builds it again. To keep the stores in another place, "
        "move the folder and set data.cache_dir.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "delete"], default="list")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="stores to delete, by their names or the first letters of them"
    )
    parser.add_argument("--dir", type=Path, default=default_cache(), help="the cache folder (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="delete all stores")
    parser.add_argument(
        "--unused-days", type=float, metavar="N", help="delete the stores that no run has used for N days"
    )
    options = parser.parse_intermixed_args(arguments)
    if not options.dir.is_dir() and options.dir != default_cache():
        raise UserError(f"{options.dir}: no such folder; set --dir to the cache folder")
    stores, console = list_stores(options.dir), Console(True)
    if options.action == "delete":
        _delete(_chosen(stores, options), options.dir, console)
        return 0
    if options.names or options.all or options.unused_days is not None:
        raise UserError("cache list: takes no names, --all or --unused-days; use `accel-restore cache delete`")
    rows = [
        (
            store.name[:12],
            store.description.get("images", "?"),
            f"{store.nbytes / 1e6:,.1f}",
            _pixels(store.description),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(store.last_used)),
            store.description.get("first", "?")[-48:],
        )
        for store in stores
    ]
    if rows:
        header = ("name", "images", "MB", "pixels", "last used", "first image")
        console.table(str(options.dir), rows, header)
    console.log(f"{options.dir}: {len(stores)} stores, {sum(store.nbytes for store in stores) / 1e6:.0f} MB")
    return 0


def _pixels(description: dict[str, Any]) -> str:
    """Channels, bits and codec of a store in words."""
    if not {"channels", "bits"} <= set(description):
        return "?"
    return f"{description['channels']} x {description['bits']} bits, {description.get('codec', 'raw')}"


def _delete(chosen: list[StoredSource], folder: Path, console: Console) -> None:
    """Delete stores that no process uses, and report. Raises: UserError, at the end, for files that remain."""
    deleted, num_used, problems = [], 0, []
    for store in chosen:
        try:
            if delete_store(folder, store.name):
                deleted.append(store)
            else:
                num_used += 1
        except OSError as error:
            problems.append(f"{error.filename or folder}: cannot be deleted ({error.strerror})")
    kept = f"; kept {num_used} in use" if num_used else ""
    console.log(f"deleted {len(deleted)} stores, {sum(store.nbytes for store in deleted) / 1e6:.0f} MB{kept}")
    raise_problems(f"{len(problems)} of {len(chosen)} stores remain; change the permissions of {folder}", problems)


def _chosen(stores: list[StoredSource], options: argparse.Namespace) -> list[StoredSource]:
    """Return the stores to delete. Raises: UserError unless the options choose in one way, which is valid."""
    if bool(options.names) + options.all + (options.unused_days is not None) > 1:
        raise UserError("cache delete: give either store names, --all or --unused-days N")
    if options.unused_days is not None and not options.unused_days >= 0:  # also NaN
        raise UserError(f"cache delete: --unused-days {options.unused_days:g} must be 0 or more")
    if options.all:
        return stores
    if options.unused_days is not None:
        return [store for store in stores if time.time() - store.last_used > 86400 * options.unused_days]
    if not options.names:
        raise UserError("cache delete: nothing to delete; give store names, --all or --unused-days N")
    for name in options.names:
        if not (name and any(store.name.startswith(name) for store in stores)):
            command = f"accel-restore cache --dir {shlex.quote(str(options.dir))}"
            raise UserError(f"{name or repr(name)}: no such store; `{command}` lists them")
    return [store for store in stores if store.name.startswith(tuple(options.names))]
