"""The command ``smallobj``: subcommands, help, wrong usage, and what a missing package leads to."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import d2_smallobj.commands
from d2_smallobj.annotations.label_maps import write_label_map
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


def test_a_shell_completes_subcommands_and_options(tmp_path):
    """As argcomplete's shell function calls the command; nothing but the words is written."""
    pytest.importorskip("argcomplete")
    found, file = {}, tmp_path / "words"
    for line in (
        "smallobj pre",
        "smallobj prepare weak-labels ",
        "smallobj evaluate --predictions",
    ):
        more = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        more |= {"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_STDOUT_FILENAME": str(file)}
        command = [sys.executable, "-m", "d2_smallobj.commands.smallobj"]
        done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        found[line] = file.read_text().split()
        file.unlink()
    assert list(found.values()) == [["predict", "prepare"], ["boxes", "cam"], ["--predictions"]]


SCORE = ("--predictions", "x", "--output", "x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evalute"], "error: no subcommand 'evalute'; did you mean evaluate"),
        (["prepare", "pascalb"], "error: no subcommand 'prepare pascalb'; did you mean prepare pa"),
        (["xyz"], "error: no subcommand 'xyz'; did you mean evaluate, compare"),
        (["evaluate"], "error: the following arguments are required: --predictions, --output (see"),
        (["evaluate", *SCORE], "error: ground truth: give one of --semantic, --coco-json"),
        (["evaluate", *SCORE, "--semantic", "x", "--panoptic", "x", "y"], "error: ground truth"),
        (["evaluate", *SCORE, "--semantic", "x", "--unannotated", "x"], "goes with --dataset"),
        (["evaluate", *SCORE, "--compare", "x", "--quiet"], "give --report, too"),
        (["evaluate", "merge", "x"], "required: --output (see smallobj evaluate merge --help)"),
        (["compare", "x"], "error: at least two runs are needed, got x"),
        (["compare", "x", "y", "--level", "95"], "--level: expected a number between 0 and 1, got"),
        (["compare", "x", "y", "--samples", "0"], "--samples: expected an integer >= 1, got '0'"),
        (["compare", "x", "y", "--quiet"], "error: --quiet prints nothing: give --output"),
        (["report", "--nothing"], "error: "),
        (["sensitivity", "--output", "x", "--list", "y"], "error: --list: of which ground truth?"),
        (["sensitivity", "--output", "x", "--steps", "0"], "--steps: expected an integer >= 1"),
        (["stats", "--output", "x"], "error: no data set: give --dataset, --coco-json"),
        (["stats", "--output", "x", "--coco-json", "y", "--instances", "z"], "must follow the"),
        (["prepare", "coco", "train2016"], "argument SPLIT: invalid choice: 'train2016'"),
        (["prepare", "demo", "--size", "0"], "--size: expected an integer >= 1, got '0'"),
        (["prepare", "pascal-b", "--max-void", "nan"], "--max-void: expected a number, got 'nan'"),
        (["prepare", "pseudo-labels", "irn"], "error: give the folders that the method wrote"),
        (["prepare", "review", "--output", "x"], "error: give either --pascal-b or --coco-json"),
        (["prepare", "weak-labels", "bags"], "error: no subcommand 'prepare weak-labels bags'"),
        (
            ["prepare", "weak-labels", "cam", "--output", "x"],
            "are required: --config-file, --dataset",
        ),
        (["prepare", "weak-labels", "boxes", "--jobs", "0"], "--jobs: expected an integer >= 1"),
        (
            ["data", "--account", "x", "--category-map", "y"],
            "--category-map needs --classes",
        ),
        (["doctor", "x"], "error: unrecognized arguments: x (see smallobj doctor --help)"),
        (["train", "--num-gpus", "two"], "--num-gpus: expected an integer >= 1, got 'two'"),
        (["train", "--num-machines", "2"], "error: --num-machines needs --dist-url tcp://"),
        (["predict", "--output", "x"], "required: --config-file (see smallobj predict --help)"),
        (["ablation", "--variants", "cee"], "argument --variants: invalid choice: 'cee'"),
        (["ablation", "--jobs", "0"], "--jobs: expected an integer >= 1, got '0'"),
        (["mixed", "--vary", "tau"], "error: argument --vary: expected KEY=VALUE, got 'tau'"),
        (["mixed", "--seeds", "-1"], "--seeds: expected an integer >= 0, got '-1'"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(run, arguments, told):
    code, out, error = run(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: ")
    assert told in error


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("evaluate --predictions no --semantic no --output {out}", "no such folder"),
        ("evaluate --predictions no --coco-json no.json --output {out}", "no.json"),
        ("evaluate merge no --output {out}", "no: no scored run"),
        ("compare no nothing", "no: no scored run"),
        ("compare A=no nothing", "no: no scored run"),
        ("evaluate --predictions x --semantic y --output {out} --compare B=no", "no scored run"),
        ("report no --output {out}/x.html", "no: no scored run"),
        ("sensitivity --semantic no --output {out}", "no such folder"),
        ("stats --semantic no --output {out} --no-figures", "no such folder"),
        ("prepare coco val2017 --root no", "instances_val2017.json"),
        ("prepare demo --root {file}/no", "{file}"),
        ("prepare weak-labels boxes --dataset voc_2012_val_x --output {out}", "'voc_2012_val_x'"),
        (
            "prepare weak-labels cam --config-file demo_ce.yaml --output {out}"
            " --dataset coco_json@no.json@no",
            "no.json",
        ),
        ("prepare pascal-b --lvis-json no.json --annotations-only --output {out}", "no.json"),
        ("prepare pseudo-labels irn no --root {out}", "{out}/VOCdevkit/VOC2012/ImageSets"),
        ("prepare review --coco-json no.json --images no --output {out}/x.html", "no.json"),
        ("data --account no.json", "no.json"),
        ("data voc_2012_trainaug_amm", "did you mean 'voc_2012_trainaug_amn'?"),
        ("train --config-file demo_sbc.yaml", "--config-file demo_sbc.yaml does not exist"),
        ("predict --config-file demo_sbc.yaml --output {out}", "the nearest: demo_sbce.yaml"),
        ("ablation --config-file demo_sbc.yaml --output {out}", "the nearest: demo_sbce.yaml"),
        ("mixed --config-file demo_sbc.yaml --output {out}", "the nearest: demo_sbce.yaml"),
    ],
)
def test_a_failure_is_status_1_and_names_what(run, tmp_path, command, told):
    if set(command.split()) & {"data", "train", "predict", "ablation", "mixed", "weak-labels"}:
        pytest.importorskip("torch")
    (tmp_path / "file").touch()
    places = {"out": tmp_path / "out", "file": tmp_path / "file"}
    code, out, error = run(*command.format(**places).split())
    assert (code, out) == (1, "")
    error = error[error.index("error: ") :]  # after a progress bar
    assert told.format(**places) in error
    # A line, or a list of what is missing.
    further = error.splitlines()[1:]
    assert not further or error.splitlines()[0].endswith(" missing:"), error
    assert not places["out"].exists() or not [*places["out"].rglob("*.*")]


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


def without_rights(call):
    """What a call returns in a child that is not root."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            answer = call()
        except BaseException as error:
            answer = [99, "", repr(error)]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = json.load(file)
    os.waitpid(child, 0)
    return answer


@pytest.mark.parametrize(
    "command",
    [
        "prepare demo --root {0}/demo --num-train 1",
        "prepare coco val2017 --root {0}/closed",
        "evaluate --predictions {0} --semantic {0} --output {0}/out",
        "evaluate --predictions {0}/closed --semantic {0} --output /tmp",
        "evaluate --predictions {0} --semantic {0}/closed --output /tmp",
        "stats --semantic {0} --output {0}/out --no-figures",
        "sensitivity --output {0}/out",
        "compare {0}/closed/x {0}/closed/y",
        "report {0}/closed/x --output {0}/x.html",
        "prepare review --coco-json {0}/closed/x.json --images {0} --output /tmp/no/x.html",
    ],
)
def test_a_folder_without_rights_is_one_line(run, command):
    # Who is not root may be barred from the folder of the packages.
    name = next(known for known in SUBCOMMANDS if command.startswith(known))
    importlib.import_module(f"d2_smallobj.{SUBCOMMANDS[name][0].partition(':')[0]}")
    # Not tmp_path: whose parents a user who is not root may not enter.
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/closed", 0o700)
        os.chmod(folder, 0o555)
        if os.geteuid():
            os.chmod(f"{folder}/closed", 0o000)
        code, _, error = without_rights(lambda: run(*command.format(folder).split()))
        os.chmod(folder, 0o700)
        os.chmod(f"{folder}/closed", 0o700)
        assert not os.listdir(f"{folder}/closed")
    assert (code, error.count("\n")) == (1, 1), error
    assert error.startswith("error: ")
    assert folder in error


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --predictions {0} --semantic {0} --output {1}",
        "stats --semantic {0} --output {1} --no-figures",
        "data label_maps@{0}@{0},classes=2",
        "predict --config-file demo_ce.yaml --input {0} --output {1} MODEL.WEIGHTS ''",
    ],
)
def test_a_file_name_that_is_not_utf8_is_told_with_its_folder(run, tmp_path, command):
    folder = tmp_path / "maps"
    write_label_map(folder / "a.png", np.ones((8, 8), np.uint8))
    os.link(folder / "a.png", os.path.join(os.fsencode(folder), b"b\xff.png"))
    if command.split()[0] in ("data", "predict"):
        pytest.importorskip("torch")
    code, out, error = run(*command.format(folder, tmp_path / "out").split())
    assert code == 1
    told = f"1 file name(s) in {folder} that are not UTF-8; rename them:\n  b'b\\xff.png'"
    assert told in out + error


def test_without_torch_the_way_out_is_told(repository):
    commands = ["train", "predict --config-file x --output x", "data", "ablation", "mixed"]
    commands.append("evaluate --predictions x --dataset x --output /tmp")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['smallobj']\n"
        "from d2_smallobj.commands.smallobj import main\n"
        f"for command in {commands}:\n"
        "    try: main(command.split())\n"
        "    except SystemExit as stop: print(stop.code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), done.stderr
    install = rf"not installed.*pip install '?{re.escape(str(repository))}\[train\]"
    for line in lines:
        assert re.match(rf"error: (--dataset: .*)?torch.*: {install}", line), line


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
