"""Compilation is tried on one small kernel, and what it lacks is one sentence."""

from pathlib import Path

import pytest
import torch

from accel_restore.errors import UserError
from accel_restore.models import build_model
from accel_restore.models.compile import check_compiler, compile_blocks, repeated_blocks

HEADERS_MISSING = """#!/bin/sh
case "$*" in *--version*|*-dumpversion*) echo 12.2.0; exit 0;; esac
echo "kernel.cpp: In function:" >&2
echo "kernel.cpp:1:10: fatal error: Python.h: No such file or directory" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, r"InvalidCxxCompiler: No working C\+\+ compiler found"),
        ("#!/bin/sh\nexit 1\n", r"InvalidCxxCompiler: No working C\+\+ compiler found"),
        (HEADERS_MISSING, r"kernel\.cpp:1:10: fatal error: Python\.h: No such file"),
    ],
)
def test_compilation_that_fails_is_one_sentence_with_its_key_and_remedy(script, reason, tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    if script is not None:
        compiler.write_text(script)
        compiler.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": (str(compiler),)}), pytest.raises(UserError) as raised:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(raised.value)
    raised.match(rf"^train\.compile: torch cannot compile for cpu \({reason}.*\); .*or set train\.compile=false$")


def test_folder_of_compiled_code_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "file"
    folder.write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=rf"^train\.compile: .*{Path(folder)}, is writable; or set train\.compile"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize(("setting", "mode"), [(False, "none"), (True, None), ("reduce-overhead", "reduce-overhead")])
def test_every_block_is_compiled_in_the_mode_of_the_setting(setting, mode, monkeypatch):
    model, seen = build_model("unet", {"width": 4, "multipliers": [1, 2], "blocks": [2, 2]}, 3, 1), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *, dynamic, mode: seen.append((self, mode)))
    compile_blocks(model, setting)
    assert seen == ([] if setting is False else [(block, mode) for block in repeated_blocks(model)])
