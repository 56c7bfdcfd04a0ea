"""The budget of a step: what is counted by hand for single kernels, and what it tells."""

from __future__ import annotations

import argparse

import pytest
import torch
from benchmarks import budget
from benchmarks.budget import MATRIX, REST, Rates, Traffic
from torch.nn import functional as F


def counted(work):
    with Traffic(Rates(flops=1e9, bandwidth=1e9)) as traffic:
        work()
    return traffic


def test_kernels_by_hand():
    """A convolution; a sum of a repeated row; an addition in place; a view, which is nothing."""
    images, kernels = torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3)
    traffic = counted(lambda: F.conv2d(images, kernels))
    row = traffic.rows[True]
    operations = 2 * 2 * 5 * 6 * 6 * 3 * 9
    moved = 4 * (images.numel() + kernels.numel() + 2 * 5 * 6 * 6)
    assert row["gflop"] == pytest.approx(operations / 1e9)
    assert row["gbyte"] == pytest.approx(moved / 1e9)
    assert row["floor_ms"] == pytest.approx(1e3 * max(operations, moved) / 1e9)
    assert traffic.rows[False]["kernels"] == 0
    line = torch.ones(100)
    cases = {
        400 + 4: lambda: line.expand(7, 100).sum(),
        1200: lambda: line.add_(line.view(100)),
        0: lambda: line.view(10, 10).t(),
    }
    for expected, work in cases.items():
        assert counted(work).total()["gbyte"] == pytest.approx(expected / 1e9), expected


def measure(*given):
    parser = argparse.ArgumentParser()
    budget.add_arguments(parser)
    return budget.run(parser.parse_args(["--width", "32", "--depth", "18", *given]))


def test_a_small_step():
    """Twice the images are twice the operations, and none is outside the matrix units."""
    one, two = (measure("--crop", "33", "--batch", n) for n in "12")
    parts = two.figures["parts"]
    before = one.figures["parts"]
    assert parts[MATRIX]["gflop"] == pytest.approx(2 * before[MATRIX]["gflop"])
    assert parts[MATRIX]["gflop"] > 0 == parts[REST]["gflop"]
    # Of a parameter: θ, θ*, F and its gradient are read and the gradient written at the least.
    weights, passes = two.figures["trained_parameters"], parts["EWC: gradient"]["gbyte"]
    assert passes == before["EWC: gradient"]["gbyte"] > 5 * 4 * weights / 1e9
    upsampled = 4 * 2 * 21 * 33 * 33 / 1e9
    for name, row in parts.items():
        if "loss" in name:
            assert row["gbyte"] > 5 * upsampled, name
    steps = two.figures["steps"]
    assert steps["matrix units alone"] < steps["CE"] < steps["L_SB"]
    assert not two.missed
    assert "| network: matrix units" in two.text


def test_a_measured_step_and_another_gpu():
    options = ("--crop", "33", "--batch", "1")
    slow, fast = measure(*options, "--step", "100"), measure(*options, "--gpu", "H200")
    assert slow.figures["to_floor"] == pytest.approx(100 / slow.figures["steps"]["CE"])
    assert "times its floor" in slow.text
    assert fast.figures["steps"]["CE"] < slow.figures["steps"]["CE"]
