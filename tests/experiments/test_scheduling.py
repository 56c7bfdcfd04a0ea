"""Several runs at once: order, dependencies, failures, shares of the machine."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.experiments import scheduling
from d2_smallobj.experiments.scheduling import Job, Resources, divide_machine, run_jobs


class Recorder:
    """Makes jobs and records what happens to them."""

    def __init__(self, failing=()):
        self.failing, self.lock = set(failing), threading.Lock()
        self.events, self.busy = [], set()

    def job(self, name, after=None):
        def run(share):
            with self.lock:
                self.events.append(("start", name))
                assert id(share) not in self.busy, "one share, two jobs at once"
                self.busy.add(id(share))
            with self.lock:
                self.events.append(("end", name))
                self.busy.remove(id(share))
            if name in self.failing:
                raise RuntimeError(f"{name} broke")

        return Job(name, run, after)

    def started(self):
        return [name for kind, name in self.events if kind == "start"]


def test_the_order_of_one_share_and_two_at_the_same_time():
    record = Recorder()
    jobs = [record.job("a"), record.job("b", "a"), record.job("c"), record.job("d", "b")]
    run_jobs(jobs, divide_machine(1))
    assert record.started() == ["a", "b", "c", "d"]
    # Each waits for the other: with one share this would never end.
    barrier = threading.Barrier(2, timeout=20)
    run_jobs([Job(name, lambda share: barrier.wait()) for name in "ab"], divide_machine(2))


def test_a_failure_stops_what_depends_on_it_only():
    record = Recorder(failing=["a", "d"])
    jobs = [record.job("a"), record.job("b", "a"), record.job("c", "b"), record.job("d")]
    told = r"^2 run\(s\) failed:\n  a broke\n  d broke\n2 more depend on them$"
    with pytest.raises(RuntimeError, match=told):
        run_jobs([*jobs, record.job("e")], divide_machine(1))
    assert record.started() == ["a", "d", "e"]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shares=st.integers(1, 4), count=st.integers(0, 9))
def test_properties(data, shares, count):
    names = [f"job{number}" for number in range(count)]
    failing = data.draw(st.sets(st.sampled_from(names)) if names else st.just(set()))
    record = Recorder(failing)
    jobs, after = [], {}
    for number, name in enumerate(names):
        after[name] = data.draw(st.sampled_from([None, *names[:number]]))
        jobs.append(record.job(name, after[name]))

    def doomed(name):
        return name is not None and (name in failing or doomed(after[name]))

    expected = {name for name in names if not doomed(after[name])}
    broken = pytest.raises(RuntimeError) if expected & failing else contextlib.nullcontext()
    with broken:
        run_jobs(jobs, divide_machine(shares))
    assert sorted(record.started()) == sorted(expected)
    place = record.events.index
    assert all(place(("end", after[n])) < place(("start", n)) for n in expected if after[n])


def test_gpus_are_dealt_out():
    def dealt(jobs, **options):
        return ["+".join(share.devices) for share in divide_machine(jobs, **options)]

    threads = max(1, (os.cpu_count() or 1) // 2)
    pairs = [Resources(threads, tuple(pair)) for pair in ("01", "23")]
    assert divide_machine(None, num_gpus=2, devices="01234") == pairs
    assert dealt(None, devices=["0", "GPU-7"]) == ["0", "GPU-7"]
    # More runs than GPUs share them; fewer leave some free.
    assert dealt(3, devices="01") == ["0", "1", "0"]
    assert dealt(1, devices="01") == ["0"]
    assert divide_machine(None) == [Resources(os.cpu_count() or 1)]
    assert len(divide_machine(3, num_gpus=2)) == 3


def test_visible_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("SOMETHING", "else")
    own = Resources(3, ("2", "0")).environment()
    assert (own["CUDA_VISIBLE_DEVICES"], own["OMP_NUM_THREADS"]) == ("2,0", "3")
    assert own["SOMETHING"] == "else"
    assert Resources(3).environment()["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    monkeypatch.setattr(scheduling.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert scheduling.visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-a")
    assert scheduling.visible_devices() == ["5", "GPU-a"]
    monkeypatch.setattr(scheduling.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert scheduling.visible_devices() == []


@pytest.mark.parametrize(
    ("jobs", "options", "message"),
    [
        (0, {}, "--jobs must be >= 1, got 0"),
        (1, {"num_gpus": 0}, "--num-gpus must be >= 1, got 0"),
        (1, {"num_gpus": 3, "devices": "01"}, r"--num-gpus 3 .* 2 GPU\(s\) can be used: 0, 1"),
    ],
)
def test_bad_shares(jobs, options, message):
    with pytest.raises(ValueError, match=message):
        divide_machine(jobs, **options)
