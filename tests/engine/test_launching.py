"""The place of a process among those that torchrun or SLURM has started."""

from __future__ import annotations

import argparse
from unittest.mock import Mock

import pytest
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from d2_smallobj.engine import distributed
from d2_smallobj.engine.distributed import Place, find_place, first_host, joined, run
from d2_smallobj.utils.cli import user_message

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "node1", "MASTER_PORT": "1234"},
}
SLURM = {
    **{"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
    **{"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[007-009,012]"},
    **{"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2"},
}
ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
ONE_TASK = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Calls of detectron2's launch, on a machine without GPUs."""
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    calls = []
    monkeypatch.setattr(distributed, "launch", lambda main, *a, **k: calls.append((main, a, k)))
    return calls


def test_torchrun():
    assert find_place(TORCHRUN) == Place("torchrun", 5, 8, 1, 4, "tcp://node1:1234")
    elastic = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}
    assert find_place(elastic).url == "env://"


def test_slurm():
    url = f"tcp://gpu007:{20000 + 7 * 4711 % 20000 + 2}"
    assert find_place(SLURM) == Place("SLURM", 3, 4, 1, 2, url)
    meeting = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "99"}
    assert find_place({**SLURM, **meeting}).url == "tcp://10.0.0.1:99"
    assert find_place({**SLURM, **TORCHRUN}).launcher == "torchrun"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0"},
        {**TORCHRUN, **ONE},
        # The script of an sbatch job, which runs once whatever the job has asked for.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"},
        {**SLURM, **ONE_TASK},
    ],
    ids=["nothing", "part", "one process", "sbatch", "one task"],
)
def test_a_process_on_its_own(environment):
    assert find_place({**environment, "SLURM_STEP_TASKS_PER_NODE": "1"}) is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "of which LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, M"),
        ({**TORCHRUN, "RANK": "one"}, "RANK must be an integer >= 0, got 'one'"),
        ({**TORCHRUN, "RANK": "8"}, r"rank must be in 0\.\.7, got 8"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "same number of processes, got 8 in all, 3 here"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "4 here, of which this is number 4"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is missing"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "TASKS_PER_NODE must be one .*'2,1'"),
        ({**SLURM, "SLURM_STEP_NODELIST": "[1-2]"}, r"list of machines, got '\[1-2\]'"),
    ],
)
def test_variables_that_make_no_sense(environment, told):
    with pytest.raises(ValueError, match=told):
        find_place(environment)


def test_first_host():
    nodes = ("node7", "a1,b2", "gpu[007-009,012],cpu1", "gpu[3]", "r[1,4]n", "gpu-a-[10-12]")
    first = ["node7", "a1", "gpu007", "gpu3", "r1n", "gpu-a-10"]
    assert list(map(first_host, nodes)) == first


def arguments(**values):
    defaults = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return argparse.Namespace(**{**defaults, **values})


def test_who_starts_the_processes_is_clear(monkeypatch, launches):
    # Nobody else has.
    monkeypatch.setattr(distributed.os, "environ", {})
    where = {"num_machines": 3, "machine_rank": 1, "dist_url": "tcp://a:1"}
    given = arguments(num_gpus=2, **where)
    run(print, given, launches.append)
    launch = (distributed._run_and_leave, (2,), {**where, "args": (print, given)})
    assert launches == [6, launch]
    monkeypatch.setattr(distributed.os, "environ", TORCHRUN)
    with pytest.raises(ValueError, match=r"torchrun has started 8 .*leave out .* 2 and 1"):
        run(print, arguments(num_gpus=2), print)
    # One task of SLURM's a machine, which starts that machine's processes itself.
    monkeypatch.setattr(distributed.os, "environ", SLURM)
    run(print, arguments(num_gpus=8, num_machines=4), launches.append)
    assert launches[2] == 32
    assert launches[3][1] == (8,)


ENDS = [
    (
        ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 9, -9, "SIGKILL"),
        "process 1 terminated with signal SIGKILL, and the others were ended. .*--resume",
    ),
    (
        ProcessRaisedException("Traceback\ntorch.distributed.DistNetworkError: in use\n", 0, 9),
        "^the processes cannot meet at auto: in use$",
    ),
]


@pytest.mark.parametrize(("error", "told"), ENDS)
def test_the_end_of_a_launched_process_is_one_line(monkeypatch, error, told):
    monkeypatch.setattr(distributed.os, "environ", {})
    monkeypatch.setattr(distributed, "launch", Mock(side_effect=error))
    with pytest.raises(OSError, match=told) as caught:
        run(print, arguments(num_gpus=2), print)
    assert user_message(caught.value) == str(caught.value)


def test_fewer_gpus_than_processes(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 1)
    message = r"started 4 processes on this machine, .* got 1"
    with pytest.raises(ValueError, match=message), joined(find_place(TORCHRUN)):
        pass


CHECK = """
from torch import distributed as dist
from d2_smallobj.engine.distributed import _main_process_first

calls = []
_main_process_first(lambda: calls.append(1))
assert len(calls) == (job["rank"] == 0)
try:
    _main_process_first(lambda: int("a wrong key"))
except (ValueError, SystemExit) as end:
    print(type(end).__name__, end, flush=True)
dist.barrier()
"""


def test_one_process_checks_for_all(train_server):
    answer = train_server.code(CHECK, world=2)
    assert answer.codes == [0, 0], answer.stderr
    assert answer.stdout.startswith("ValueError invalid literal for int()")
    number = sum(1 for _ in train_server.folder.glob("*.stdout")) - 1
    assert (train_server.folder / f"{number}.stdout.1").read_text() == "SystemExit 1\n"
