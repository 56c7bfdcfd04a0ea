"""The command ``smallobj``: subcommands, help, wrong usage, and what a missing package leads to."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

import d2_smallobj.commands
from d2_smallobj.commands import doctor, smallobj
from d2_smallobj.commands.smallobj import SUBCOMMANDS
from d2_smallobj.utils import installation
from d2_smallobj.utils.cli import make_parser, parse_with_overrides
from d2_smallobj.utils.installation import EXTRAS, explain_missing, install_command


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process: exit status, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["smallobj"])
        code = 0
        try:
            smallobj.main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        out, error = capsys.readouterr()
        if isinstance(code, str):
            code, error = 1, f"{error}{code}\n"
        return code or 0, out, error

    return call


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_of_a_subcommand_names_it(run, name):
    if name in ("train", "predict", "ablation", "mixed", "data"):
        pytest.importorskip("torch")
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    assert f"usage: smallobj {name} " in out
    assert name == "train" or out.startswith("Example")


def test_the_help_lists_all(run):
    code, out, _ = run()
    assert code == 0
    assert out.startswith("Example: smallobj evaluate ")
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("  ")] == [
        *SUBCOMMANDS
    ]
    assert run("--version")[1] == f"smallobj {smallobj.d2_smallobj.__version__}\n"
    code, out, _ = run("prepare", "--help")
    assert code == 0
    assert "prepare pascal-b" in out
    assert "evaluate" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evalute"], "error: no subcommand 'evalute'; did you mean evaluate"),
        (["prepare", "pascalb"], "error: no subcommand 'prepare pascalb'; did you mean prepare pa"),
        (["xyz"], "error: no subcommand 'xyz'; did you mean evaluate, compare"),
        (["evaluate"], "smallobj evaluate: error: the following arguments are required"),
        (["report", "--nothing"], "smallobj report: error: "),
    ],
)
def test_wrong_usage_is_status_2(run, arguments, told):
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert told in error


def test_overrides_begin_at_a_key_of_the_config():
    parser = make_parser(None)
    parser.add_argument("--input", nargs="+")
    given = ["--input", "IMG_0001.JPG", "DSC.PNG", "MODEL.WEIGHTS", "x.pth", "SEED", "1"]
    args = parse_with_overrides(parser, given)
    assert args.input == ["IMG_0001.JPG", "DSC.PNG"]
    assert args.opts == ["MODEL.WEIGHTS", "x.pth", "SEED", "1"]


def test_from_scenes_to_a_report(run, tmp_path):
    root = tmp_path / "demo"
    assert run("prepare", "demo", "--root", root, "--num-train", 1, "--num-val", 3)[0] == 0
    voc = root / "VOCdevkit" / "VOC2012"
    names = tmp_path / "classes.txt"
    names.write_text("background\nball\ncrate\nstar\nleaf\nring\nkite\n")
    semantic = voc / "SegmentationClass"
    for name in ("a", "b"):
        code, out, error = run(
            *("evaluate", "--predictions", semantic, "--semantic", semantic, "--classes", names),
            *("--instances", voc / "SegmentationObject", "--output", tmp_path / name),
            *("--bootstrap", 5),
        )
        assert code == 0, error
        assert "100.00" in out
    page = tmp_path / "pages" / "page.html"
    code, out, error = run("report", tmp_path / "a", f"other={tmp_path / 'b'}", "--output", page)
    assert (code, out) == (0, f"wrote {page}\n"), error
    text = page.read_text(encoding="utf-8")
    assert "other" in text
    assert text.rstrip().endswith("</html>")
    code, _, error = run("report", tmp_path / "nothing", "--output", page)
    assert code == 1
    assert error.startswith("error: ")
    assert str(tmp_path / "nothing") in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_one_line(run, tmp_path):
    tmp_path.chmod(0o500)
    code, _, error = run("prepare", "demo", "--root", tmp_path / "demo", "--num-train", 1)
    tmp_path.chmod(0o700)
    assert (code, error.count("\n")) == (1, 1)
    assert str(tmp_path) in error


@pytest.mark.parametrize("name", ["train", "predict", "data", "ablation"])
def test_without_torch_the_way_out_is_told(repository, name):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['smallobj'];"
        f"from d2_smallobj.commands.smallobj import main; main(['{name}', '--help'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    wanted = rf"error: torch.*: not installed.*pip install '?{re.escape(str(repository))}\[train\]"
    assert re.match(wanted, done.stderr)
    assert done.stderr.count("\n") == 1


def test_extras_are_those_of_setup(repository, monkeypatch):
    setuptools = pytest.importorskip("setuptools")

    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    exec(
        compile((repository / "setup.py").read_text(), str(repository / "setup.py"), "exec"),
        {"__file__": str(repository / "setup.py"), "__name__": "setup"},
    )
    for extra, modules in EXTRAS.items():
        names = {re.split(r"[^\w-]", text)[0].lower() for text in given["extras_require"][extra]}
        assert names == set(modules)
    core = " ".join(given["install_requires"])
    assert not re.search("torch|scipy|matplotlib|lvis", core)
    assert (
        "smallobj = d2_smallobj.commands.smallobj:main" in given["entry_points"]["console_scripts"]
    )


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install matplotlib"),
        ({"url": "file:///nowhere/x.whl"}, "pip install matplotlib"),
        (
            {"url": "https://x.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'd2_smallobj[plots] @ git+https://x.org/r.git@abc'",
        ),
        ({"url": "file://{folder}"}, "pip install '{folder}[plots]'"),
    ],
)
def test_the_command_follows_where_the_copy_came_from(origin, command, tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    text = json.dumps(origin).replace("{folder}", str(folder).replace(" ", "%20")) if origin else ""

    class Installed:
        def read_text(self, name):
            return text

    monkeypatch.setattr(installation, "__file__", str(tmp_path / "d2_smallobj/utils/x.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert install_command("plots") == command.replace("{folder}", str(folder))


def test_an_old_python_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(SystemExit, match=r"^error: d2_smallobj needs Python 3\.9 or newer"):
        importlib.reload(d2_smallobj.commands)


def test_errors_of_other_modules_are_left_alone():
    assert explain_missing(ImportError("no", name="nothing.at.all")) is None
    assert explain_missing(ImportError("broken", name="json")) is None


def test_doctor(run, monkeypatch):
    code, out, _ = run("doctor")
    assert code == 0, out
    assert re.search(r"host +(embedded|detectron2) ", out)
    assert re.search(r"numpy +\d", out)
    assert "no problem found" in out
    versions = {"numpy": "2.1.0", "torch": "2.2.1", "opencv-python": "4.9.0.80"}
    versions["opencv-python-headless"] = "4.9"
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, "1.0"))
    monkeypatch.setattr(doctor, "_import_error", lambda module: "OSError: libGL.so.1")
    code, out, _ = run("doctor")
    assert code == 1
    assert "cv2 does not import: OSError: libGL.so.1\n  repair: apt-get install" in out
    assert "repair: pip install 'numpy<2'" in out
    assert "repair: pip install 'opencv-python>=4.10'" in out
    assert "overwrite each other\n  repair: pip uninstall" in out


def test_doctor_of_a_detectron2_that_does_not_import(tmp_path, repository):
    package = tmp_path / "detectron2"
    package.mkdir()
    text = '__version__ = "0.6"\nraise ImportError("undefined symbol")\n'
    (package / "__init__.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{repository}", "D2_SMALLOBJ_HOST": ""}
    done = subprocess.run(
        [sys.executable, "-m", "d2_smallobj.commands.smallobj", "doctor"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 1
    assert "problem: detectron2 does not import: ImportError: undefined symbol" in done.stdout
    assert "D2_SMALLOBJ_HOST=embedded" in done.stdout
