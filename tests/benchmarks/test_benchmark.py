"""The benchmark command: its sub-commands, what it writes, and how it fails."""

from __future__ import annotations

import functools
import json
import re

import benchmarks
import pytest


@pytest.fixture
def benchmark_tool(run_tool):
    return functools.partial(run_tool, "benchmark")


FOLDER = ["folder", "--images", 2, "--jobs", 1, "--rounds", 1, "--json"]


def test_every_benchmark_keeps_to_the_interface():
    for name, summary in benchmarks.BENCHMARKS.items():
        module = benchmarks.load(name)
        assert summary
        assert module.__doc__
        assert callable(module.run)
        assert callable(module.add_arguments)


def test_figures_are_printed_and_written(benchmark_tool, tmp_path):
    done = benchmark_tool(*FOLDER, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["settings"] == {"images": 2, "rounds": 1, "seed": 0}
    assert f"{figures['jobs 1']['score']['seconds']:.3f}" in done.stdout


def test_a_missed_target_fails_the_check(benchmark_tool, monkeypatch):
    missed = benchmarks.Measurement({}, "", ["crowded images take 3.00 times"])
    monkeypatch.setattr(benchmarks.load("metric"), "run", lambda _: missed)
    assert benchmark_tool("metric").returncode == 0
    done = benchmark_tool("metric", "--check")
    assert done.returncode == 1
    assert done.stderr == "error: missed: crowded images take 3.00 times\n"


def test_a_file_that_cannot_be_written_is_one_line(benchmark_tool, tmp_path):
    (tmp_path / "file").touch()
    done = benchmark_tool(*FOLDER, tmp_path / "file" / "figures.json")
    assert done.returncode == 1
    assert re.match(r"error: .*could not write .*figures\.json", done.stderr)


NUMBERS = {
    "metric": ("--images", "--crowded", "--rounds"),
    "folder": ("--images", "--jobs", "--rounds"),
    "inference": ("--images", "--workers", "--rounds"),
    "train": ("--crop", "--batch", "--rounds", "--steps"),
    "lvis": ("--images", "--num-images", "--jobs"),
}


def test_numbers_are_checked(benchmark_tool):
    for name, options in NUMBERS.items():
        for option in options:
            done = benchmark_tool(name, option, 0)
            assert done.returncode == 2
            assert f"argument {option}: expected an integer >= " in done.stderr


def test_help_and_wrong_names(benchmark_tool):
    done = benchmark_tool("metric", "--help")
    assert done.returncode == 0
    assert "np.bincount(key" in done.stdout
    assert "invalid choice: 'metrc'" in benchmark_tool("metrc").stderr
