"""`accel-restore push`: put a run's best weights on the Hugging Face Hub, with model card, pictures, configuration."""

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from accel_restore.config.load import read_mapping
from accel_restore.config.safe_yaml import Dumper
from accel_restore.errors import UserError
from accel_restore.inference.model_card import CONFIG, SAMPLES, card, portable_config
from accel_restore.inference.restorer import load
from accel_restore.models.weights_file import WEIGHTS
from accel_restore.tracking.console import Console
from accel_restore.utils.files import REMOVING, discard, sync_folder, write_durably
from accel_restore.utils.redaction import redacted

README = "README.md"
_OURS = {README, WEIGHTS, CONFIG, SAMPLES}


def main(arguments: list[str]) -> int:
    """Write the folder, upload it unless `--dry-run` is given, and return the exit code.

    Raises: UserError for invalid weights, names or folders, without a token, or if the Hub refuses.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="accel-restore push", description=__doc__)
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub; created if it does not exist")
    parser.add_argument("source", type=Path, metavar="WEIGHTS|RUN_DIR", help="a run's folder, or a best.safetensors")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and upload nothing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", metavar="NAME", help="a name that the Hub knows, such as apache-2.0 or cc-by-4.0")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="folder to upload (default: RUN_DIR/hub)")
    options = parser.parse_args(arguments)
    _check_names(options.repo, options.license)
    weights = options.source / WEIGHTS if options.source.is_dir() else options.source
    if not weights.exists():
        raise UserError(f"{weights}: does not exist; name a run's folder, or its {WEIGHTS}")
    folder = options.output or weights.parent / "hub"
    _check_folder(folder, weights)
    token = None if options.dry_run else _token()
    console = Console(True)
    write_folder(folder, options.repo, weights, options.license)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.log(f"{folder}: {names}")
    if options.license is None:
        console.log("the model card names no license; add one with --license, such as --license apache-2.0")
    if token is None:
        console.log("nothing was uploaded (--dry-run)")
    else:
        console.log(upload(folder, options.repo, options.private, token))
    return 0


def write_folder(folder: Path, repo: str, weights: Path, license: str | None) -> None:
    """Write the folder to upload, atomically; it replaces the folder of an earlier call.

    Raises: UserError for damaged weights, or if their metadata hold a secret.
    """
    metadata, run = load(weights).metadata, weights.parent
    if redacted(metadata) != metadata:
        raise UserError(f"{weights}: its metadata hold a secret, so nothing is uploaded")
    config = _config(run / CONFIG)
    picture, caption = _samples(run, int(metadata.get("epoch", -1))) or (None, None)
    files: dict[str, bytes | Path] = {WEIGHTS: weights}
    if picture is not None:
        files[SAMPLES] = picture
    if config is not None:
        files[CONFIG] = yaml.dump(config, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100).encode()
    files[README] = redacted(str(card(repo, metadata, config, license, caption))).encode()
    try:
        _replace_folder(folder, files)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _replace_folder(folder: Path, files: dict[str, bytes | Path]) -> None:
    """Write a folder of copied files and contents, atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f"{REMOVING}hub-", dir=folder.parent))
    try:
        staged.chmod(0o755)
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, staged / name)
            else:
                write_durably(staged / name, content)
        if folder.exists():
            discard(folder)
        staged.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _config(file: Path) -> dict[str, Any] | None:
    """Return the portable configuration of the run that the weights are in, None if they are elsewhere."""
    tree = read_mapping(file) if file.is_file() else {}
    is_of_run = isinstance(tree.get("data"), dict) and isinstance(tree["data"].get("train"), dict)
    return portable_config(tree) if is_of_run else None


def upload(folder: Path, repo: str, private: bool, token: str) -> str:
    """Upload the folder in one commit and return a message. Raises: UserError if the Hub cannot be used."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=sorted(_OURS), commit_message="Weights of accel_restore"
        )
    except Exception as error:  # from the Hub library, its HTTP library, or the network
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{repo}: cannot be uploaded ({redacted(reason.replace(token, '***')):.300}); the folder {folder} is "
            "complete; try again, or check whether the token may write there"
        ) from None
    return f"uploaded: {url}"


def _check_names(repo: str, license: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: is not a repository name ({str(error).splitlines()[0]})") from None
    if repo.count("/") != 1:
        raise UserError(f"{repo}: is not a repository name; write owner/name, such as {'me/' + repo}")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(f"--license: the Hub does not know '{license}'; write it as apache-2.0, mit or cc-by-4.0")


def _check_folder(folder: Path, weights: Path) -> None:
    """Raise `UserError` unless the folder is new, empty, or one that this command wrote; it will be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder; name another with -o")
    if not folder.exists():
        return
    if any(place.exists() and folder.samefile(place) for place in (weights.parent, weights.resolve().parent)):
        raise UserError(f"{folder}: is the folder of the weights, which is never replaced; name another with -o")
    names = {path.name for path in folder.iterdir()}
    # A folder of this command has both; a README.md or config.yaml alone is somebody's project.
    other = sorted(names - _OURS) or ([] if names >= {README, WEIGHTS} else sorted(names))
    if other:
        raise UserError(f"{folder}: holds other files ({other[0]}); name a new folder with -o")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise UserError(
            "no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN (--dry-run needs none)"
        )
    return token


def _samples(run: Path, epoch: int) -> tuple[Path, str] | None:
    """Return the picture of validation images nearest to the epoch of the best weights, and its caption."""
    found = {int(path.stem[6:]): path for path in (run / "samples").glob("epoch-[0-9]*.png") if path.stem[6:].isdigit()}
    if not found:
        return None
    nearest = min(found, key=lambda number: (abs(number - epoch), number))
    when = "with these weights" if nearest == epoch else f"in epoch {nearest + 1} of the run"
    return found[nearest], f"Validation images {when}: input, output, and the clean image (gt)."
