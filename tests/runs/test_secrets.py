"""No secret from the environment, an override or a URL is in any file of a run, whichever way the run ends."""

import json
import os
import sys

import driver
import forked
import pytest
import yaml
from runs import run_folder, small_config
from torch import nn

from accel_restore import train
from accel_restore.commands.verify_resume import short
from accel_restore.config.load import config_from, to_yaml
from accel_restore.utils import redaction
from accel_restore.utils.redaction import redacted

ENVIRONMENT = {
    "WANDB_API_KEY": "5e1ec7ed5e1ec7ed5e1ec7ed5e1ec7ed5e1ec7ed",
    "HF_TOKEN": "hf_QmVuY2hNYXJrVG9rZW5Gb3JUZXN0cw",
    "MY_SERVICE_TOKEN": "correct-horse-battery",
    "CLOUD_SECRET": "tr0ub4dor&3/=+x",
    "DB_PASSWORD": "pa55word with spaces",
    "AWS_SECRET_ACCESS_KEY_2": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
}
OF_OVERRIDES = {
    "login": "s3cr3t-l0gin",
    "signature": "c2lnbmF0dXJlLW9mLWEtdXJs",
    "token": "0123456789abcdef-token",
    "key": "0123456789abcdef-key",
}
PHOTOS = 8, 2  # training, validation
SECRETS = {**ENVIRONMENT, **OF_OVERRIDES}
OVERRIDES = [
    f"model.url=https://user:{SECRETS['login']}@models.example/net?version=2&signature={SECRETS['signature']}",
    f"model.token={SECRETS['token']}",
    f"model.api_key={SECRETS['key']}",
]


class Net(nn.Module):
    """A model with secrets in its configuration. It fails in a given forward pass with the secrets in its message."""

    def __init__(self, url: str, token: str, api_key: str, notes: list[str], fails: int | None = None):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.fails, self.said = fails, [url, *notes]

    def forward(self, x):
        if self.fails is not None and self.training:
            self.fails -= 1
            if self.fails < 0:
                raise RuntimeError(f"no answer from {' '.join(self.said)}")
        return self.layer(x)


@pytest.fixture(scope="module")
def secret_photos(photos):
    """Return the photographs in a folder whose name is a secret."""
    return photos[0].rename(photos[0].with_name(SECRETS["MY_SERVICE_TOKEN"])), photos[1]


def run(secret_photos, out, *overrides, name="run", mode=""):
    """Return the configuration and exit code of a training with W&B in the environment above."""
    config = small_config(
        *secret_photos,
        out,
        run={"name": name},
        data={"batch_size": 4},
        model={"name": "test_secrets:Net", "notes": list(ENVIRONMENT.values())},
        tracking={"wandb": "offline", "log_every_steps": 1},
        train={"max_skipped_steps": 1, "epochs": 2},
    )
    del config["model"]["width"]
    (out / f"{name}.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(out / f"{name}.yaml"), "--cpu", *OVERRIDES, *overrides]
    (code,) = forked.codes([forked.start_process(_train, arguments, mode, str(out / f"{name}.log"))])
    return config, code


def _train(arguments, mode, log):
    os.environ.update(ENVIRONMENT)
    sys.argv = ["train.py", *arguments]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if mode == "unredacted":
        redaction._redacted = lambda value, secrets: value
    else:
        driver.install(mode)
    sys.exit(train.main(arguments))


def found(config):
    """Return the secrets found in the names and bytes of a run's files and of the cache: file → secrets."""
    cache = run_folder(config).parent / "cache"
    files = [path for folder in (run_folder(config), cache) for path in folder.rglob("*") if path.is_file()]
    assert files
    leaks = {}
    for path in files:
        data = path.read_bytes() + str(path.relative_to(run_folder(config).parent)).encode()
        spellings = {name: {text, json.dumps(text)[1:-1]} for name, text in SECRETS.items()}
        if names := [name for name, texts in spellings.items() if any(text.encode() in data for text in texts)]:
            leaks[path.name] = names
    return leaks


ENDS = {"finished": (0, [], ""), "failed": (1, ["model.fails=3"], ""), "diverged": (3, [], "nan@0:3:9")}


@pytest.mark.parametrize("state", ENDS)
def test_no_file_of_a_run_contains_a_secret(secret_photos, tmp_path, state):
    code, overrides, mode = ENDS[state]
    config, ended = run(secret_photos, tmp_path, *overrides, "--audit", mode=mode)
    assert ended == code, (tmp_path / "run.log").read_text()
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["state"] == state
    if state == "failed":
        assert status["error"].startswith("no answer from https://***@models.example/net?version=2&signature=*** ***")
    names = {path.name for path in run_folder(config).rglob("*")} | {p.suffix for p in run_folder(config).rglob("*")}
    assert {"config.yaml", "metrics.jsonl", "audit", "state.json", "best.safetensors", ".wandb"} <= names
    assert found(config) == {}


def test_control_without_redaction_secrets_are_everywhere(secret_photos, tmp_path):
    config, code = run(secret_photos, tmp_path, "model.fails=3", mode="unredacted")
    assert code == 1
    leaks = found(config)
    assert {"config.yaml", "state.json", "best.safetensors", "status.json"} <= leaks.keys()
    assert set(SECRETS) == set(leaks["config.yaml"]) == set(leaks["state.json"]) == set(leaks["best.safetensors"])
    assert any(name.endswith(".wandb") for name in leaks)
    assert any(name.endswith(".json") and len(name) == 37 for name in leaks)  # next to a store of the cache


def test_a_run_continues_in_a_changed_environment(secret_photos, tmp_path):
    config, code = run(secret_photos, tmp_path, "--stop-after", "1", "tracking.wandb=disabled")
    assert code == 143
    config["model"]["notes"] = list(ENVIRONMENT.values())
    plain = [*OVERRIDES, "tracking.wandb=disabled"]
    assert forked.run(config, *plain) == [0], forked.printed(config)  # in an environment without secrets
    assert forked.run(config, *plain, "optimizer.lr=0.5", "run.name=other", f"run.resume={run_folder(config)}") == [2]
    assert "optimizer.lr: 0.001 in the commit, 0.5 now" in forked.printed(config)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("https://me:pass@host/a", "https://***@host/a"),
        ("postgres://me:p@ss@host:5432/db?sslmode=require", "postgres://***@host:5432/db?sslmode=require"),
        ("https://host/a?x=1&api_key=abc&y=2", "https://host/a?x=1&api_key=***&y=2"),
        ("https://host/a?X-Amz-Signature=abc#b", "https://host/a?X-Amz-Signature=***#b"),
        ("see ghp_0123456789abcdefABCDEF here", "see *** here"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ({"token": "0123456789abcdef"}, {"token": "***"}),
        ({"a": [{"password": "long enough"}]}, {"a": [{"password": "***"}]}),
        # values that only look like secrets
        ({"token": "cls"}, {"token": "cls"}),
        ({"token": "learned_embedding"}, {"token": "learned_embedding"}),
        ({"key": "projection", "keys": 8, "tokens": 77}, {"key": "projection", "keys": 8, "tokens": 77}),
        ({"password": 12345678}, {"password": 12345678}),
        ("shots/{}_key=1.png", "shots/{}_key=1.png"),
        ("me@host:/data/sk-1", "me@host:/data/sk-1"),
        ("file:///data/a@b.png", "file:///data/a@b.png"),
    ],
    ids=str,
)
def test_which_values_count_as_secrets(given, left):
    assert redacted(given) == left


def test_whole_secrets_of_the_environment_are_redacted_but_short_words_are_not(monkeypatch):
    monkeypatch.setenv("ONE_TOKEN", "abcdefgh")
    monkeypatch.setenv("LONGER_TOKEN", "abcdefghij")
    monkeypatch.setenv("SORT_KEY", "name")
    monkeypatch.setenv("KEYBOARD", "abcdefgh-de")
    assert redacted(["abcdefghij", "xabcdefghx", "name", "KEYBOARD"]) == ["***", "x***x", "name", "KEYBOARD"]


def test_secrets_are_redacted_in_the_printed_configuration_but_not_in_the_one_used(secret_photos):
    tree = {"data": {"train": {"gt": "x"}}, "model": {"name": "test_secrets:Net", "notes": []}}
    config = config_from(tree, OVERRIDES)
    assert not any(secret in to_yaml(config) for secret in OF_OVERRIDES.values())
    assert config.model.arguments["token"] == SECRETS["token"]
    assert short(config, 1)["model"]["token"] == SECRETS["token"]  # for verify-resume, whose files are removed
