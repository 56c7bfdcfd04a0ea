"""The benchmark's images, its yardstick, and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from d2_smallobj.metrics import match_image


@pytest.fixture(scope="module")
def benchmark(repository):
    spec = importlib.util.spec_from_file_location(
        "benchmark_tool", repository / "tools" / "benchmark.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(benchmark, seed, *shape):
    return benchmark.draw_maps(np.random.default_rng(seed), *(shape or (500, 375, 8)))


def test_images_are_seeded_and_have_void_borders(benchmark):
    prediction, semantic, instances = draw(benchmark, 1)
    assert semantic.shape == (375, 500)
    for one, other in zip(draw(benchmark, 1), (prediction, semantic, instances)):
        assert np.array_equal(one, other)
    assert not np.array_equal(draw(benchmark, 2)[0], prediction)
    assert np.array_equal(semantic == 255, instances == 255)
    assert prediction.max() < 21
    # Wherever an instance meets something else there is void between.
    inside = (instances > 0) & (instances < 255)
    beside = (instances[:, 1:] != instances[:, :-1]) & inside[:, 1:]
    assert np.all(instances[:, :-1][beside] == 255)


def test_the_yardstick_counts_what_ours_counts(benchmark):
    maps = draw(benchmark, 3)
    expected = match_image(*maps, num_classes=21)
    assert np.array_equal(benchmark.bincount(maps), expected.confusion)
    assert np.array_equal(benchmark.ours(maps).confusion, expected.confusion)
    assert len(expected.table) > 2


def test_slope(benchmark):
    assert benchmark.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)


def test_the_command(repository, tmp_path):
    arguments = ["--images", "2", "--crowded", "1", "--rounds", "1", "--json", "figures.json"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    tool = str(repository / "tools" / "benchmark.py")
    done = subprocess.run(
        [sys.executable, tool, "metric", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("VOC-like", "crowded"):
        rows = figures[name]
        assert rows["bincount"]["ratio"] == 1.0
        assert rows["ours"]["median"] > 0
        assert rows["ours"]["ratio"] == pytest.approx(
            rows["ours"]["median"] / rows["bincount"]["median"]
        )
    assert "| ours |" in done.stdout
    assert "Linear in images" in done.stdout


def test_a_missed_target_fails_the_check(benchmark, monkeypatch):
    row = {"median": 3.0, "quiet": 3.0, "ratio": 3.0, "quiet_ratio": 3.0}
    result = {"machine": "m", "settings": {}, "VOC-like": {"ours": {**row, "ratio": 0.5}}}
    monkeypatch.setattr(benchmark, "measure", lambda *_: {**result, "crowded": {"ours": row}})
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "metric"])
    benchmark.main()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "metric", "--check"])
    with pytest.raises(SystemExit, match=r"slower than its target of .*: crowded"):
        benchmark.main()
