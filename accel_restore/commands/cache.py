"""`accel-restore cache`: list or delete the stores of decoded images that runs share."""

import argparse
import time
from pathlib import Path

from accel_restore.data.cache import StoredSource, default_cache, delete_store, list_stores
from accel_restore.errors import UserError
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
    options = parser.parse_args(arguments)
    if not options.dir.is_dir() and options.dir != default_cache():
        raise UserError(f"{options.dir}: no such folder; set --dir to the cache folder")
    stores, console = list_stores(options.dir), Console(True)
    if options.action == "delete":
        chosen = _chosen(stores, options)
        try:
            deleted = [store for store in chosen if delete_store(options.dir, store.name)]
        except OSError as error:
            raise UserError(f"{error.filename or options.dir}: cannot be deleted ({error.strerror})") from error
        kept = f"; kept {len(chosen) - len(deleted)} that processes use" if len(deleted) < len(chosen) else ""
        console.log(f"deleted {len(deleted)} stores, {sum(store.nbytes for store in deleted) / 1e6:.0f} MB{kept}")
        return 0
    if options.names or options.all or options.unused_days is not None:
        raise UserError("cache list: takes no names, --all or --unused-days; use `accel-restore cache delete`")
    rows = [
        (
            store.name[:12],
            store.description.get("images", "?"),
            f"{store.nbytes / 1e6:,.1f}",
            store.description.get("channels", "?"),
            store.description.get("bits", "?"),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(store.last_used)),
            store.description.get("first", "?")[-48:],
        )
        for store in stores
    ]
    if rows:
        header = ("name", "images", "MB", "channels", "bits", "last used", "first image")
        console.table(str(options.dir), rows, header)
    console.log(f"{options.dir}: {len(stores)} stores, {sum(store.nbytes for store in stores) / 1e6:.0f} MB")
    return 0


def _chosen(stores: list[StoredSource], options: argparse.Namespace) -> list[StoredSource]:
    if options.all:
        return stores
    if options.unused_days is not None:
        return [store for store in stores if time.time() - store.last_used > 86400 * options.unused_days]
    if not options.names:
        raise UserError("cache delete: nothing to delete; give names of stores, --all or --unused-days N")
    for name in options.names:
        if not any(store.name.startswith(name) for store in stores):
            raise UserError(f"{name}: no such store in {options.dir}; `accel-restore cache` lists them")
    return [store for store in stores if store.name.startswith(tuple(options.names))]
