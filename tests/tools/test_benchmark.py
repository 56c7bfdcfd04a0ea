"""The benchmark command: its sub-commands, what it writes, and how it fails."""

from __future__ import annotations

import importlib.util
import json
import sys

import benchmarks
import pytest


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location(
        "benchmark_tool", repository / "tools" / "benchmark.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    tool.main()


def test_every_benchmark_keeps_to_the_interface():
    for name, summary in benchmarks.BENCHMARKS.items():
        module = benchmarks.load(name)
        assert summary
        assert module.__doc__
        assert callable(module.run)
        assert callable(module.add_arguments)


def test_figures_are_printed_and_written(tool, monkeypatch, tmp_path, capsys):
    arguments = ["folder", "--images", 2, "--jobs", 1, "--rounds", 1]
    call(tool, monkeypatch, *arguments, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["settings"] == {"images": 2, "rounds": 1, "seed": 0}
    shown = capsys.readouterr().out
    assert f"{figures['jobs 1']['score']['seconds']:.3f}" in shown


def test_a_missed_target_fails_the_check(tool, monkeypatch):
    def run(_):
        return benchmarks.Measurement({}, "", ["crowded images take 3.00 times"])

    monkeypatch.setattr(benchmarks.load("metric"), "run", run)
    call(tool, monkeypatch, "metric")
    with pytest.raises(SystemExit, match=r"^error: missed: crowded images take 3\.00 times$"):
        call(tool, monkeypatch, "metric", "--check")


def test_errors_are_one_line(tool, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["folder", "--images", 1, "--jobs", 1, "--rounds", 1]
    with pytest.raises(SystemExit, match=r"^error: .*could not write .*figures\.json"):
        call(tool, monkeypatch, *arguments, "--json", tmp_path / "file" / "figures.json")
    with pytest.raises(SystemExit, match="2"):
        call(tool, monkeypatch, "metrc")
    assert "invalid choice: 'metrc'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(("metric", option) for option in ("--images", "--crowded", "--rounds")),
        *(("folder", option) for option in ("--images", "--jobs", "--rounds")),
        *(("inference", option) for option in ("--images", "--workers", "--rounds")),
        *(("train", option) for option in ("--crop", "--batch", "--rounds", "--steps")),
        *(("lvis", option) for option in ("--images", "--num-images", "--jobs")),
    ],
)
def test_numbers_are_checked(tool, monkeypatch, capsys, name, option):
    with pytest.raises(SystemExit, match="2"):
        call(tool, monkeypatch, name, option, 0)
    assert f"argument {option}: expected an integer >= " in capsys.readouterr().err


def test_help_says_what_the_yardstick_is(tool, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(tool, monkeypatch, "metric", "--help")
    assert "np.bincount(key" in capsys.readouterr().out
