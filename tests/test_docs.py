"""The site builds and the notebooks run; slow, so that .ci/run asks for them beside the suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
VOC = ROOT.parent / "shared" / "realdata" / "voc" / "VOC2012"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("voc", [None, VOC], ids=["drawn", "VOC"])
def test_a_notebook_runs(path, voc, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("VOC2012", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if voc is not None:
        if path.stem != "score_by_size" or not voc.is_dir():
            pytest.skip("needs VOC images, and a notebook that uses them")
        monkeypatch.setenv("VOC2012", str(voc))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "IA-mIoU_S" in text
    if path.stem == "score_by_size":
        assert "'IA-mIoU_S': 0.0, 'IA-mIoU_M': 100.0" in text  # the method blind to small objects


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for page, text in (
        ("index.html", "IA-mIoU"),
        ("api/index.html", "Accumulator"),
        ("datasets/index.html", "PASCAL-B"),
    ):
        assert text in (tmp_path / page).read_text(encoding="utf-8")
