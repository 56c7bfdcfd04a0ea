"""tools/compare.py on scored runs and on the published tables."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import ScoredRun, save_run

CLASS_NAMES = ["background", "cat", "dog"]


@pytest.fixture
def compare(run_tool, monkeypatch):
    def run(*arguments, cwd=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        return run_tool("compare", *arguments)

    return run


def scored(noise, *, images=30, start=0):
    accumulator = Accumulator(3)
    for number in range(start, start + images):
        generator = np.random.default_rng(number)
        truth = np.kron(generator.integers(0, 3, (5, 5)), np.ones((9, 9), int)).astype(np.uint8)
        wrong = np.random.default_rng([number, round(1000 * noise)]).random(truth.shape) < noise
        accumulator.update(f"{number:03d}", np.where(wrong, 0, truth).astype(np.uint8), truth)
    return ScoredRun.from_accumulator(accumulator, CLASS_NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, noise in (("good", 0.02), ("fair", 0.2), ("alike", 0.201)):
        save_run(folder / name, scored(noise))
    save_run(folder / "others", scored(0.1, start=25))
    return folder


def test_runs_side_by_side(compare, folder, tmp_path):
    done = compare(
        *("good", "better=fair", "alike", "--samples", "300", "--seed", "1"),
        *("--output", tmp_path / "new" / "c.md", "--output", tmp_path / "c.csv"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "new" / "c.md").read_text(encoding="utf-8") == done.stdout
    assert "## Ranks" in done.stdout
    with open(tmp_path / "c.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    small = [row for row in rows if row["figure"] == "IA-mIoU_S"]
    plain = {row["method"]: row for row in small if row["kind"] == "figure"}
    assert list(plain) == ["good", "better", "alike"]
    gaps = {(row["method"], row["other"]): row for row in small if row["kind"] == "difference"}
    assert set(gaps) == {("better", "good"), ("alike", "good"), ("alike", "better")}
    worse = gaps["better", "good"]
    assert float(worse["high"]) < 0
    assert float(worse["p_value"]) == 1 / 301
    assert float(worse["value"]) == float(plain["better"]["value"]) - float(plain["good"]["value"])
    assert float(gaps["alike", "better"]["p_value"]) > 0.05
    again = compare("good", "better=fair", "alike", "--samples", 300, "--seed", 1, cwd=folder)
    assert again.stdout == done.stdout


def test_figures_are_those_of_the_run(compare, folder):
    done = compare(folder / "good", folder / "fair", "--samples", "50", "--baseline", "fair")
    assert done.returncode == 0, done.stderr
    figures = scored(0.02).figures
    assert re.search(rf"\| good +\| +{figures['mIoU']:.2f} \[", done.stdout)
    assert re.search(r"\| good − fair +\| mIoU +\|", done.stdout)
    assert "fair − good" not in done.stdout


def test_published_tables(compare):
    done = compare("--published")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## Table") == 4
    assert "mIoU and IA-mIoU: 0.794 (the paper prints 0.79)" in done.stdout
    assert "mIoU and IA-mIoU: 0.385 (the paper prints 0.38)" in done.stdout
    one = compare("--published", "pascal_b")
    assert one.stdout.count("## Table") == 1
    assert "0.385" in one.stdout
    rca = next(line for line in one.stdout.splitlines() if line.startswith("| RCA"))
    cells = [cell.strip() for cell in rca.strip("|").split("|")]
    assert cells == ["RCA", "image + saliency", "60.8 (2)", "45.5 (1)", "18.4 (2)"]


MISTAKES = {
    "": "give scored runs to compare, or --published",
    "good": "at least two runs are needed, got good",
    "good fair --published voc": "give scored runs to compare, or --published",
    "--published pascal": "invalid choice: 'pascal'",
    "good fair --output c.html": "must end in .md or .csv, got c.html",
    "--published --output c.csv": "--published writes Markdown",
    "good nowhere": "nowhere",
    "good good": "error: a run can be compared with others only; given twice",
    "a=good a=fair": "error: runs must have distinct names, got ['a', 'a']",
    "good fair --baseline x": "baseline must be one of ['good', 'fair'], got 'x'",
    "good fair --samples 0": "--samples: expected an integer >= 1, got '0'",
    "good fair --level 95": "--level: expected a number between 0 and 1, got '95'",
    "good others": "25 only in good: 000, 001, 002, 003, 004, 005, 006, 007, 008, 009 ",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_what_cannot_be_compared_is_one_clear_error(compare, folder, arguments):
    done = compare(*arguments.split(), cwd=folder)
    assert done.returncode != 0
    assert MISTAKES[arguments] in done.stderr
    assert done.stdout == ""
