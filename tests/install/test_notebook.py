"""The notebook trains, shows and restores, and is stored without outputs."""

import json
import shutil
import subprocess
import sys

from runs import ROOT, clean_environment

NOTEBOOK = ROOT / ".github" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbmake", "--nbmake-timeout=300"]
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [*command, NOTEBOOK.name], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment
    )
    assert process.returncode == 0 and "1 passed" in process.stdout, process.stdout + process.stderr
    assert (tmp_path / "runs" / "quickstart" / "best.safetensors").is_file()


def test_the_notebook_has_no_outputs_and_installs_only_what_is_missing():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    *_, condition, install = code[0]["source"]
    assert "find_spec" in condition and install.strip().startswith("%pip install")
