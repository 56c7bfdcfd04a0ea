"""Two gloo processes give the same bits as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from d2_smallobj.evaluation import SmallObjectEvaluator

# Spawned processes import this script again, hence the guard.
SCRIPT = """
import json, os, sys
import numpy as np
import d2_smallobj
from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.utils import comm


def evaluate(job, step):
    rank = comm.get_rank()
    evaluator = SmallObjectEvaluator("shared", output_dir=job["output"])
    for index in range(rank, len(job["records"]), step):
        labels = np.array(job["guesses"][index])
        evaluator.process([job["records"][index]], [{"sem_seg": labels}])
    try:
        result = evaluator.evaluate()
    except ValueError as error:
        return str(error)
    return None if result is None else {key: repr(value) for key, value in result.items()}


def main(job):
    DatasetCatalog.register("shared", lambda: job["records"])
    MetadataCatalog.get("shared").set(stuff_classes=job["names"], ignore_label=255)
    # Every second image for each rank; then ranks 0 and 1 share images 1 to 4.
    results = [evaluate(job, step=2), evaluate(job, step=1)]
    with open(f"{job['output']}.{comm.get_rank()}", "w") as file:
        json.dump(results, file)
    # torch aborts now and then while it takes gloo down on a busy machine, whatever ran before
    # ("terminate called without an active exception"): that is not what is tested.
    comm.synchronize()
    os._exit(0)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        job = json.load(file)
    launch(main, 2, dist_url="auto", args=(job,))
"""


def run_two(dataset, tmp_path, repository):
    script, job, output = tmp_path / "two.py", tmp_path / "job.json", tmp_path / "output"
    script.write_text(SCRIPT)
    content = {
        "records": dataset.records,
        "names": dataset.metadata.stuff_classes,
        "guesses": [labels.tolist() for labels in dataset.guesses],
        "output": str(output),
    }
    job.write_text(json.dumps(content))
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(job)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return output, [json.loads((tmp_path / f"output.{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would start NCCL on the GPUs")
def test_two_processes(dataset, tmp_path, repository):
    evaluator = SmallObjectEvaluator(dataset.name, output_dir=tmp_path / "alone")
    for record, labels in zip(dataset.records, dataset.guesses):
        evaluator.process([record], [{"sem_seg": labels}])
    alone = evaluator.evaluate()
    output, (main, other) = run_two(dataset, tmp_path, repository)
    assert main[0] == {"small_objects": repr(alone["small_objects"])}
    # Every image once: a sampler that gives one to both ranks is an error, not a wrong figure.
    assert "every image may be evaluated once, got again image1, image2, image3" in main[1]
    # Rank 1 has nothing to report, as with detectron2's own evaluators.
    assert other == [None, None]
    table = (output / "instances.csv").read_text()
    assert table == (tmp_path / "alone" / "instances.csv").read_text()
