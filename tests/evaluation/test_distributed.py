"""Two gloo processes give the same bits as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.utils import comm


def evaluate(job, step):
    rank = comm.get_rank()
    evaluator = SmallObjectEvaluator("shared", output_dir=job["output"])
    for record, labels in list(zip(job["records"], job["guesses"]))[rank::step]:
        evaluator.process([record], [{"sem_seg": np.array(labels)}])
    try:
        result = evaluator.evaluate()
    except ValueError as error:
        return str(error)
    return None if result is None else {key: repr(value) for key, value in result.items()}


def in_each_process(job):
    DatasetCatalog.register("shared", lambda: job["records"])
    MetadataCatalog.get("shared").set(stuff_classes=job["names"], ignore_label=255)
    # Every second image for each rank; then ranks 0 and 1 share images 1 to 4.
    results = [evaluate(job, step=2), evaluate(job, step=1)]
    with open(f"{job['output']}.{comm.get_rank()}", "w") as file:
        json.dump(results, file)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would start NCCL on the GPUs")
def test_two_processes(dataset, tmp_path, monkeypatch):
    evaluator = SmallObjectEvaluator(dataset.name, output_dir=tmp_path / "alone")
    for record, labels in zip(dataset.records, dataset.guesses):
        evaluator.process([record], [{"sem_seg": labels}])
    alone = evaluator.evaluate()
    job = {"records": dataset.records, "guesses": dataset.guesses}
    job.update(names=dataset.metadata.stuff_classes, output=str(tmp_path / "output"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(in_each_process, 2, dist_url="auto", args=(job,))
    main, other = (json.loads((tmp_path / f"output.{rank}").read_text()) for rank in (0, 1))
    assert main[0] == {"small_objects": repr(alone["small_objects"])}
    # Every image once: a sampler that gives one to both ranks is an error, not a wrong figure.
    assert "every image may be evaluated once, got again image1, image2, image3" in main[1]
    # Rank 1 has nothing to report, as with detectron2's own evaluators.
    assert other == [None, None]
    table = (tmp_path / "output" / "instances.csv").read_text()
    assert table == (tmp_path / "alone" / "instances.csv").read_text()
