"""Names that are not text, and text files in a locale of another encoding."""

import json
import os
import sys
from pathlib import Path

import pytest
from made_run import made_run

from accel_restore.commands.config import main as config
from accel_restore.config.load import read_mapping
from accel_restore.errors import UserError
from accel_restore.models.weights_file import read_header
from accel_restore.tracking.report.page import Page
from accel_restore.utils.files import to_json
from accel_restore.utils.utf8 import problem_of_name

NAME = os.fsdecode(b"a\xff")


def test_text_of_a_name_that_is_not_utf8_can_be_written_to_any_file():
    assert json.loads(to_json({NAME: [NAME, "é"]}).encode()) == {"a\\udcff": ["a\\udcff", "é"]}


def test_a_run_whose_folder_is_not_utf8_has_a_report(tmp_path):
    page = Page(made_run(tmp_path / NAME)).build()
    assert "a\\udcff" in page.encode().decode()


def test_weights_whose_path_is_not_utf8_are_refused_with_the_remedy(tmp_path):
    file = tmp_path / NAME
    file.touch()
    with pytest.raises(UserError, match="not valid UTF-8; rename it"):
        read_header(file)


def test_a_name_that_the_locale_cannot_decode_is_blamed_on_the_locale(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert problem_of_name(Path(NAME)).endswith("encoding of the locale (ascii); set PYTHONUTF8=1")
    assert problem_of_name(Path("photo.png")) is None


def test_an_override_that_is_not_utf8_is_refused_with_its_key():
    with pytest.raises(UserError, match=r"run\.dir: cannot be encoded in UTF-8; rename"):
        config([f"run.dir={NAME}"])


@pytest.mark.parametrize("encoding", ["gbk", "euc_jp", "latin-1", "ascii"])
def test_the_printed_configuration_is_the_same_in_every_encoding(tmp_path, monkeypatch, encoding):
    file = tmp_path / "printed.yaml"
    with file.open("w", encoding=encoding) as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert config(["run.name=Übung 写真"]) == 0
    assert read_mapping(file)["run"]["name"] == "Übung 写真"
