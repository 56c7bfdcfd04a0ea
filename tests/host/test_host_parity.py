"""The stand-in against a real detectron2, number by number, in one environment."""

import numpy as np
import pytest
import torch

from d2_smallobj import _host

pytestmark = [
    pytest.mark.real_host,
    pytest.mark.skipif(_host._find_installed() is None, reason="no detectron2 is installed"),
]

HOSTS = ("embedded", "detectron2")
RUN = "import sys, host_parity; host_parity.main(*sys.argv[1:])"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {host: tmp_path_factory.mktemp(host) for host in HOSTS}


@pytest.fixture(scope="module")
def results(folders, run_python_in):
    def run(host, *arguments):
        run_python_in(folders[host], RUN, host=host, arguments=arguments)
        return torch.load(arguments[0] / "results.pt", weights_only=False)

    found = {host: run(host, folders[host] / "first") for host in HOSTS}
    for host, other in zip(HOSTS, reversed(HOSTS)):
        # Each host continues what the other one began.
        begun = folders[other] / "first" / "training"
        found[host].update(run(host, folders[host] / "second", begun))
    return found


def assert_same(a, b, where=""):
    """Compare nested results exactly."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.mark.parametrize(
    "part", ["arguments", "resnets", "loaders", "transforms", "images", "solver", "image_list"]
)
def test_parts_are_equal(results, part):
    assert_same(results["embedded"][part], results["detectron2"][part], part)


def test_every_default_is_detectron2s(results):
    ours, real = results["embedded"]["config"], results["detectron2"]["config"]
    assert {key: real.get(key, "absent") for key in ours} == ours


@pytest.mark.parametrize("part", ["training", "evaluated", "resumed"])
def test_trainings_are_equal(results, part):
    ours, real = results["embedded"][part], results["detectron2"][part]
    assert ours["names"] == real["names"]
    assert_same(ours, real, part)


def test_each_host_resumes_what_the_other_began(results):
    for host in HOSTS:
        resumed = results[host]["resumed"]
        straight = results[host]["training"]
        assert resumed["start"] == 4
        rates = [row["lr"] for row in resumed["rows"] if "lr" in row]
        assert rates == [row["lr"] for row in straight["rows"] if "lr" in row][4:]


def test_both_hosts_ran(results):
    assert [results[host]["host"] for host in HOSTS] == list(HOSTS)
