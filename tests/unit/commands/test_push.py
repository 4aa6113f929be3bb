"""`accel-restore push` uploads a valid model card without paths or secrets, and only on request."""

import http.server
import json
import threading
import tomllib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image
from runs import ROOT
from weight_files import build, write

from accel_restore import load
from accel_restore.cli import main
from accel_restore.config.load import config_from, load_config
from accel_restore.inference.model_card import card
from accel_restore.utils.redaction import without_paths

TOKEN = "hf_" + "a1B2" * 8
PROTOCOL = {"channels": "RGB", "range": "clamped to [0, 1]", "psnr": "dB, peak 1", "ssim": "Gaussian window 11",
            "average": "per image", "input": "made by data.degradation", "crop_border": 4,
            "degradation": [{"name": "own:film", "grain": "grain.png", "sigma": [5, 50]}]}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder, with local paths and a secret in its configuration."""
    folder = tmp_path / "runs" / "mine"
    (folder / "samples").mkdir(parents=True)
    metrics = {"loss": 0.02, "psnr": 30.51234, "input_psnr": 20.2, "ssim": 0.9, "protocol": PROTOCOL}
    write(folder / "best.safetensors", build(3), metrics=json.dumps(metrics))
    data = {"train": {"gt": "/home/alice/secret-client/photos"}, "val": {"gt": ["/mnt/sets/Set12", "~/x/Set5/"]},
            "degradation": [{"name": "gaussian_noise", "sigma": [5, 50]}], "cache_dir": "/scratch/alice"}  # fmt: skip
    config = config_from({
        "run": {"name": "mine", "dir": "/home/alice/runs"}, "data": data,
        "loss": {"perceptual": {"weight": 0.1, "weights": "/home/alice/vgg19.pth"}, "l1": 1.0},
    })  # fmt: skip
    tree = config.model_dump(mode="json")
    tree["model"]["note"] = f"uses {TOKEN}"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    for epoch in (0, 3, 9):
        Image.fromarray(np.full((4, 4, 3), epoch, np.uint8)).save(folder / "samples" / f"epoch-{epoch:04d}.png")
    return folder


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))


def test_the_folder_of_a_dry_run_holds_what_the_hub_shows(run, capsys):
    assert main(["push", "me/denoiser", str(run), "--dry-run", "--license", "apache-2.0"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    hub = run / "hub"
    assert sorted(path.name for path in hub.iterdir()) == [
        "README.md",
        "best.safetensors",
        "config.yaml",
        "samples.png",
    ]
    assert load(hub / "best.safetensors").metadata == load(run / "best.safetensors").metadata
    assert (hub / "samples.png").read_bytes() == (run / "samples" / "epoch-0003.png").read_bytes()  # the best epoch
    card = huggingface_hub.ModelCard.load(hub / "README.md")
    assert "- **degradation**: own:film (grain grain.png, sigma 5 to 50)" in str(card)
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0", "accel_restore", "image-to-image",
    )  # fmt: skip
    assert {"image-restoration", "denoising", "unet"} <= set(data["tags"])
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["psnr"].metric_value == 30.5123 and results["psnr"].dataset_name == "Set12, Set5"
    for text in ("20.20 dB", "**30.51 dB**", "4 pixels at each side are ignored", "gaussian_noise (sigma 5 to 50)",
                 "`photos`",
                 'accel_restore.load("me/denoiser")', "samples.png", "sha256",
                 "epoch 4, optimizer step"):  # fmt: skip
        assert text in card.text, text
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (
        f"    pip install '.'\n\nin the source folder of {package['name']} {package['version']} or later" in card.text
    )


def test_no_file_holds_a_path_or_secret_and_the_configuration_stays_valid(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", "me/denoiser", str(run), "--dry-run"]) == 0
    given = (run / "config.yaml").read_text()
    for secret in ("alice", "/mnt", "/scratch", TOKEN):
        assert secret in given  # the control
        assert not [f for f in (run / "hub").iterdir() if secret.encode() in f.read_bytes()], secret
    tree = yaml.safe_load((run / "hub" / "config.yaml").read_text())
    del tree["model"]["note"]
    config = config_from(tree)
    assert config.data.train.gt == "photos" and config.data.val.gt == ["Set12", "Set5"]
    assert config.loss["perceptual"]["weights"] == "vgg19.pth" and config.run.dir == "runs"


@pytest.mark.parametrize(
    ("train", "length"),
    [
        ({"epochs": 1}, "1 epoch"), ({"epochs": 30}, "30 epochs"),
        ({"epochs": 500, "max_steps": 20000}, "20000 optimizer steps"),
        ({"epochs": 500, "max_steps": 20000, "steps_per_epoch": 250}, "20000 optimizer steps in epochs of 250 steps"),
        ({"epochs": 30, "steps_per_epoch": 250}, "30 epochs of 250 steps"),
    ],
)  # fmt: skip
def test_the_card_has_the_length_of_the_run(train, length, run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    text = str(card("me/denoiser", load(run / "best.safetensors").metadata, {**config, "train": train}, None, None))
    [line] = [line for line in text.splitlines() if line.startswith("- **schedule**")]
    assert line.endswith(f"), {length}")


def test_the_card_has_the_scores_and_the_protocol_of_each_set(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    metadata = load(run / "best.safetensors").metadata
    common = {"psnr": "peak 1", "crop_border": 0, "input": "differs between the sets", "channels": "RGB"}
    files = {**common, "crop_border": 2, "input": "files"}
    made = {**common, "input": "made by data.val.noisy.degradation; its draws"}
    made["degradation"] = [{"name": "gaussian_noise", "sigma": 50}]
    sets = {
        "set5": {"loss": 0.1, "psnr": 33.123456, "input_psnr": 30.0, "protocol": files},
        "noisy": {"loss": 0.2, "psnr": 27.0, "input_psnr": 14.0, "protocol": made},
    }
    metadata["metrics"] = {"loss": 0.15, "psnr": 30.06, "input_psnr": 22.0, "sets": sets, "protocol": common}
    config["data"]["val"] = {"set5": {"gt": "a", "input": "b"}, "noisy": {"gt": "a"}}
    config["data"]["train"] = {"clean": {"gt": "x"}, "real": {"gt": "y", "input": "z"}}
    config["data"]["train"]["real"] |= {"share": 0.7, "synthetic_share": 0.2}
    found = card("me/denoiser", metadata, config, None, None)
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in found.data.eval_results}
    assert results == {("set5", "psnr"): 33.1235, ("noisy", "psnr"): 27.0}
    for line in (
        "| set | PSNR of input | PSNR |",
        "| set5 | 30.00 dB | **33.12 dB** |",
        "| mean of the sets | 22.00 dB | **30.06 dB** |",
        "- **PSNR**: peak 1",
        "- **set5**: border: 2 pixels at each side are ignored; input: files",
        "- **images of clean**: gt `x` (clean images only)",
        "- **images of real**: input `z`, gt `y`; 0.7 of the samples",
        "- **input of real**: made from the clean images by ",
        " for 0.2 of these samples\n",
    ):
        assert line in found.text, line
    assert "- **noisy**: input: made by a degradation of its own; its draws; degradation: gaussian_noise" in found.text
    metadata["metrics"]["sets"] = {"set5": 3}
    assert "**30.06 dB**" in card("me/denoiser", metadata, None, None, None).text, "a damaged file"


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/home/alice/data/Train400/", "Train400"),
        ("/mnt/shots/{}_real.JPG", "shots/{}_real.JPG"),
        ("/mnt/GoPro/{}/blur/{}.png", "GoPro/{}/blur/{}.png"),
        (r"C:\Users\alice\photos", "photos"),
        ("file:///home/alice/set.parquet", "set.parquet"),
        ("../../alice/photos", "photos"),
        ("data/Train400", "data/Train400"),
        ("package:skimage/data/coffee.png", "package:skimage/data/coffee.png"),
        (str(Path.home()), "data"),
    ],
)
def test_paths_are_reduced_to_their_last_name(path, left):
    assert without_paths({"gt": [path]}) == {"gt": [left]}


def test_weights_without_a_run_can_be_pushed_twice(run, tmp_path):
    alone = tmp_path / "alone" / "model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((run / "best.safetensors").read_bytes())
    for license in ("mit", "cc-by-4.0"):  # the second call replaces the files of the first
        assert main(["push", "me/x", str(alone), "--dry-run", "--license", license]) == 0
    hub = alone.parent / "hub"
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "best.safetensors"]
    card = huggingface_hub.ModelCard.load(hub / "README.md")
    assert card.data.license == "cc-by-4.0" and "uploaded without their run" in card.text
    assert sorted(path.name for path in alone.parent.iterdir()) == ["hub", "model.safetensors"]


def test_invalid_arguments_are_refused_and_nothing_is_written(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("private")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    for words, said in (
        (["me/x", str(run), "--dry-run", "-o", str(other)], "holds other files (diary.txt)"),
        (["x", str(run), "--dry-run"], "write owner/name"),
        (["me/x y", str(run), "--dry-run"], "is not a repository name"),
        (["me/x", str(run), "--dry-run", "--license", "My Own"], "the Hub does not know 'My Own'"),
        (["me/x", str(tmp_path / "bad.safetensors"), "--dry-run"], "is a text ('bad')"),
        (["me/x", str(tmp_path / "other"), "--dry-run"], "does not exist"),
        (["me/x", "owner/name", "--dry-run"], "owner/name: does not exist"),  # nothing is downloaded
        (["me/x", str(run)], "no token of the Hugging Face Hub; log in"),
    ):
        assert main(["push", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (run / "hub").exists() and not (tmp_path / "hub").exists() and len(list(other.iterdir())) == 1


def test_a_folder_that_push_did_not_write_is_never_replaced(run, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    (alone / "README.md").write_text("my notes")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("my project")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "best.safetensors").symlink_to(alone / "best.safetensors")
    for source, folder, words in (
        (alone, alone, "is the folder of the weights"),
        (alone / "best.safetensors", alone / ".." / "alone", "is the folder of the weights"),
        (tmp_path / "linked", alone, "is the folder of the weights"),
        (run, tmp_path / "project", "holds other files (README.md)"),
    ):
        assert main(["push", "me/x", str(source), "--dry-run", "-o", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert (alone / "README.md").read_text() == "my notes" and load(alone / "best.safetensors").channels == 3
    assert (tmp_path / "project" / "README.md").read_text() == "my project"
    for _ in range(2):  # the control: a folder of an earlier call, and an empty one
        assert main(["push", "me/x", str(run), "--dry-run", "-o", str(tmp_path / "new")]) == 0


@pytest.fixture
def stub_hub(monkeypatch):
    """A local server for the Hub requests that a commit of small files needs; yields the requests."""
    asked: list[tuple[str, str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        refuse = False

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, self.headers.get("Authorization", ""), body))
            answer: dict = {}
            if self.path == "/api/repos/create":
                answer = {"url": "https://huggingface.co/me/x"}
            elif self.path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            elif "/commit/" in self.path:
                answer = {"commitUrl": "https://huggingface.co/me/x/commit/1", "commitOid": "1" * 40, "success": True}
            self._answer(403 if self.refuse else 200, answer)

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", ""), b""))
            self._answer(200, {"sha": "0" * 40, "id": "me/x", "siblings": []})

        def _answer(self, code: int, tree: dict) -> None:
            data = json.dumps(tree).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: api(endpoint=endpoint, token=token))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield asked, Handler, server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_token_of_an_upload_is_only_in_headers(run, stub_hub, capsys):
    asked, handler, server = stub_hub
    assert main(["push", "me/x", str(run), "--private"]) == 0, capsys.readouterr().err
    assert asked[0][0] == "/api/repos/create"
    made = json.loads(asked[0][2])
    assert made["name"] == "x" and made["organization"] == "me" and "private" in str(made)
    commit = next(body.decode() for path, _, body in asked if "/commit/" in path)
    for name in ("README.md", "best.safetensors", "config.yaml", "samples.png"):
        assert f'"path": "{name}"' in commit or f'"path":"{name}"' in commit
    assert all(header == f"Bearer {TOKEN}" for _, header, _ in asked)
    assert not [path for path, _, body in asked if TOKEN.encode() in body or TOKEN in path]
    handler.refuse = True
    assert main(["push", "me/x", str(run)]) == 2
    assert "me/x: cannot be uploaded" in (said := capsys.readouterr().err) and TOKEN not in said
    server.shutdown()
    server.server_close()
    assert main(["push", "me/x", str(run)]) == 2 and "cannot be uploaded" in capsys.readouterr().err


def test_the_shipped_demo_has_a_portable_configuration(run, tmp_path):
    tree = load_config().model_dump(mode="json")
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["push", "me/demo", str(run), "--dry-run", "-o", str(tmp_path / "new")]) == 0
    card = (tmp_path / "new" / "README.md").read_text()
    assert "photographs" not in card and "`package:skimage/data/coffee.png`" in card and "chelsea.png" in card
    assert load_config(tmp_path / "new" / "config.yaml").data.train.gt == tree["data"]["train"]["gt"]


def test_the_card_of_other_pixels_names_channels_and_range_and_uses_arrays():
    floats = {"channels": 31, "scale": 1, "range": [-0.3, 2.2], "pixels": {"input": "float32", "gt": "float32"}}
    raw = {"channels": 3, "scale": 2, "input_channels": 4}
    texts = [
        str(card("me/x", {"model": {"name": "unet", "arguments": {}}, "data": data, "metrics": {}}, None, None, None))
        for data in (floats, raw, {"channels": 3, "scale": 1})
    ]
    assert "of 31-channel images" in texts[0] and "float pixels -0.3 and 2.2 as 0 and 1" in texts[0]
    assert "takes a 4-channel image of any size" in texts[1] and "float pixels" not in texts[1]
    assert ['restorer(np.load("photo.npy"))' in text for text in texts] == [True, True, False]
    assert "accel-restore restore me/x photo.npy -o restored.npy" in texts[0]
