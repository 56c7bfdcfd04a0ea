"""``tools/plot_training.py`` on the folders of real (tiny) runs."""

from __future__ import annotations

import subprocess
import sys

from PIL import Image


def command(repository, *arguments):
    script = (
        f"import runpy, sys; sys.argv = {['plot_training.py', *map(str, arguments)]!r};"
        f"runpy.run_path({str(repository / 'tools' / 'plot_training.py')!r}, run_name='__main__');"
        "print([n for n in ('torch', 'detectron2') if n in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_real_runs(train_server, repository, tmp_path):
    short = {"TEST.EVAL_PERIOD": 2}
    assert train_server.train(tmp_path / "a", short).code == 0
    step = "d2_smallobj.engine.step:TaskStepTrainer._optimizer_step"
    killed = train_server.train(tmp_path / "b", strikes=[[step, 6, "kill"]])
    assert killed.code == -9
    assert train_server.train(tmp_path / "b", arguments=["--resume"]).code == 0
    with open(tmp_path / "b" / "metrics.json", "a", encoding="utf-8") as file:
        file.write('{"iteration": 9, "los')
    done = command(
        repository, tmp_path / "a", f"killed={tmp_path / 'b'}", "--output", tmp_path / "c.png"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "killed: 1 torn line(s) of metrics.json left out",
        f"wrote {tmp_path / 'c.png'}",
        "[]",
    ]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 1000


def test_errors_are_one_message(repository, tmp_path):
    done = command(repository, tmp_path / "nowhere", "--output", tmp_path / "c.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 1 folder(s) without a metrics.json:")
    assert not (tmp_path / "c.png").exists()
