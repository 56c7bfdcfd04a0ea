"""IA-mIoU and mIoU as a detectron2 evaluator.

Shapes: H, W height and width of the original image; C number of classes of the data set.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import d2_smallobj
from d2_smallobj.data.ground_truth import Reader, resolve
from d2_smallobj.data.registered_classes import Stuff
from d2_smallobj.evaluation.model_outputs import PredictionFn, class_number_remedy, predicted_labels
from d2_smallobj.metrics import COCO_SIZE_BINS, Accumulator
from d2_smallobj.metrics.records import as_size_bins
from d2_smallobj.metrics.summary import check_worst, headline_names
from d2_smallobj.scoring.run_tables import format_figures
from d2_smallobj.scoring.scored_run import METRICS_FILE, ScoredRun, save_run
from d2_smallobj.utils.files import read_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

TASK = "small_objects"
"""Key of the results, beside ``sem_seg`` of detectron2's own evaluator."""

_logged: set[str] = set()


class SmallObjectEvaluator(DatasetEvaluator):
    """Evaluates semantic segmentation by instance: ``{"small_objects": {"IA-mIoU": ..., ...}}``.

    The figures and their order are those of :func:`d2_smallobj.metrics.summary.summarize`, in
    percent, NaN where undefined; they do not depend on how images were spread over processes.
    :func:`d2_smallobj.data.ground_truth.resolve` decides which classes are objects and where
    their instances are read from; the decision is logged once, and options can change it.
    ``docs/evaluator.md`` has a table of data sets.

    Beside a project's own evaluators: :func:`d2_smallobj.add_small_objects`.

    Args:
        dataset_name: registered name of the data set.
        distributed: gather the records of all processes on rank 0; with ``False`` every
            process evaluates what it saw.
        output_dir: folder for the files of a scored run, the same that ``tools/evaluate.py``
            writes, per-class figures included; ``None`` writes nothing. Not the folder of a
            training, which has a ``metrics.json`` of another kind.
        mode: ``"exact"`` or ``"official"``, the authors' conventions
            (:func:`d2_smallobj.metrics.matching.match_image`).
        num_classes: C; needed only where the metadata has no class names.
        size_bins: exclusive upper bounds in pixels by bin name, ascending, or
            :class:`d2_smallobj.metrics.SizeBins`.
        num_workers: threads that read ground truth and match while the model goes on; 0: all is
            done in :meth:`process`. The figures are the same; an image's error is then raised
            by a later call, :meth:`evaluate` at the latest.
        task: key of the results.
        stuff: names or ids of the classes that are no objects; ``None``: as the metadata say.
        missing_instances: for an image without instance annotation in a set that has some:
            ``"error"``, ``"components"`` (of the label map) or ``"void"``.
        unannotated: for a detection set, which has no label maps: paint them from the
            annotations, all other pixels being ``"void"`` or this class, a name or an id.
        reader: a function of the dataset dict that returns (semantic, instances or ``None``),
            both (H, W) integers, in place of all files.
        prediction_fn: a function of the model's output for an image and its dataset dict that
            returns (H, W) labels or (C, H, W) scores, for models that number other classes.
        per_class: whether the results have the figures of every class, too. Trainers write all
            results as scalars: 847 classes make more than 7,000.
        worst: percentage of images that ``mIoU_I@<worst>`` and ``mIoU_C@<worst>`` rest on.

    Raises:
        ValueError: an option is out of range, ``output_dir`` has a ``metrics.json`` of other
            origin, or the metadata leave open what the ground truth is.
        FileNotFoundError: files of the data set are missing.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike[str] | None = None,
        mode: str = "exact",
        num_classes: int | None = None,
        size_bins: Mapping[str, float] = COCO_SIZE_BINS,
        num_workers: int = 0,
        task: str = TASK,
        stuff: Stuff = None,
        missing_instances: str = "error",
        unannotated: str | int | None = None,
        reader: Reader | None = None,
        prediction_fn: PredictionFn | None = None,
        per_class: bool = False,
        worst: int = 5,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}")
        self.task = check_task(task)
        if output_dir is not None:
            _check_output_dir(output_dir)
        self._truth = resolve(
            dataset_name,
            stuff=stuff,
            missing_instances=missing_instances,
            unannotated=unannotated,
            reader=reader,
            num_classes=num_classes,
        )
        self._distributed, self._output_dir, self._mode = distributed, output_dir, mode
        self._size_bins, self._worst = as_size_bins(size_bins), check_worst(worst)
        self._per_class, self._prediction_fn = per_class, prediction_fn
        counts = ["images", "instances", *(f"instances_{name}" for name in self._size_bins)]
        self._headline = [*headline_names(self._size_bins, worst), *counts]
        self._num_workers = num_workers
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: deque[concurrent.futures.Future[Accumulator]] = deque()
        self._log_decisions()
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._stop_workers()
        self._accumulator = self._new_accumulator()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch.

        Args:
            inputs: dataset dicts with ``file_name`` and, normally, ``image_id``.
            outputs: for each a dict whose ``sem_seg`` is a (C, H, W) tensor of scores, or a
                (H, W) integer tensor of labels; with a ``prediction_fn``, whatever that takes.

        Raises:
            TypeError: an output is neither integer labels nor scores.
            ValueError: a prediction or its ground truth is malformed, or they do not fit. The
                message names the image.
            FileNotFoundError: a ground-truth file is missing.
        """
        for record, output in zip(inputs, outputs):
            if record.get("image_id", record.get("file_name")) is None:
                raise ValueError(
                    f"inputs: every dict needs 'image_id' or 'file_name', got {sorted(record)}"
                )
            # Copied from the device here, since a later image may overwrite it there.
            try:
                labels = predicted_labels(
                    output, record, self._num_classes, self._truth.name, self._prediction_fn
                )
            except (TypeError, ValueError) as error:
                raise _named(error, record) from error
            self._add(record, labels)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Compute, log and write the figures.

        Returns:
            ``{task: figures}`` on rank 0; ``None`` on the others when distributed. The figures
            are the headline and the numbers of images and instances, with ``per_class`` those
            of every class, too.

        Raises:
            ValueError: two processes evaluated the same image.
            OSError: a result file cannot be written.
        """
        self._collect()
        self._stop_workers()
        accumulator = self._accumulator
        if self._distributed:
            comm.synchronize()
            states = comm.gather(accumulator.state(), dst=0)
            if not comm.is_main_process():
                return None
            accumulator = self._new_accumulator()
            for state in states:
                accumulator.merge(Accumulator.from_state(state))
        figures = accumulator.summarize(
            self._truth.class_names, size_bins=self._size_bins, worst=self._worst
        )
        self._log(accumulator, figures)
        if self._output_dir is not None:
            self._write(self._output_dir, accumulator, figures)
        if not self._per_class:
            figures = {name: figures[name] for name in self._headline}
        return OrderedDict({self.task: figures})

    @property
    def _num_classes(self) -> int:
        return len(self._truth.class_names)

    def _new_accumulator(self) -> Accumulator:
        return Accumulator(
            self._num_classes,
            stuff=self._truth.stuff,
            ignore_label=self._truth.ignore_label,
            void_instance=self._truth.void_instance,
            mode=self._mode,
        )

    def _add(self, record: Mapping[str, Any], labels: np.ndarray) -> None:
        """Match one image, now or in a worker."""
        if self._num_workers == 0:
            self._match(self._accumulator, record, labels)
            return
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._num_workers, "match")
        # A slow disk must not pile up predictions.
        self._collect(leave=4 * self._num_workers)
        one = self._new_accumulator()
        self._pending.append(self._pool.submit(self._match, one, record, labels))

    def _match(
        self, accumulator: Accumulator, record: Mapping[str, Any], labels: np.ndarray
    ) -> Accumulator:
        """Match one image; returns the accumulator, which has it then."""
        truth = self._truth.read_record(record)
        image_id = record.get("image_id", record.get("file_name"))
        try:
            accumulator.update(image_id, labels, truth.semantic, truth.instances)
        except (TypeError, ValueError) as error:
            fits = not labels.size or 0 <= labels.min() <= labels.max() < self._num_classes
            remedy = "" if fits else class_number_remedy(self._num_classes, self._truth.name)
            raise _named(error, record, f" (ground truth {truth.source})", remedy) from error
        return accumulator

    def _log_decisions(self) -> None:
        """Log what was decided about the data set, each sentence once in this process."""
        for sentence in self._truth.decided if comm.is_main_process() else ():
            # A training makes a new evaluator for every evaluation.
            if sentence not in _logged:
                _logged.add(sentence)
                level = logging.WARNING if sentence in self._truth.warned else logging.INFO
                evaluation_logger().log(level, "%s", sentence)

    def _collect(self, leave: int = 0) -> None:
        """Merge what workers have matched, in order, until at most ``leave`` are pending."""
        while self._pending and (self._pending[0].done() or len(self._pending) > leave):
            self._accumulator.merge(self._pending.popleft().result())

    def _stop_workers(self) -> None:
        """Drop what is pending."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _log(self, accumulator: Accumulator, figures: Mapping[str, float]) -> None:
        """Log the tables, and a line to copy as detectron2's, which leaves out hyphenated names."""
        logger, name = evaluation_logger(), self._truth.name
        # The source of the instances is known once images have been read.
        self._log_decisions()
        if not accumulator.images:
            logger.warning("%s: no image was evaluated, all figures are NaN", name)
        table = format_figures(figures, self._truth.class_names)
        logger.info("%s (mode %s), percent:\n%s", name, self._mode, table)
        sizes = list(self._size_bins)
        names = ["mIoU", "IA-mIoU", *(f"IA-mIoU_{size}" for size in sizes)]
        names += ["instances", *(f"instances_{size}" for size in sizes)]
        values = ",".join(f"{figures[name]:.4f}" for name in names)
        for line in (f"Task: {self.task}", ",".join(names), values):
            logger.info("copypaste: %s", line)

    def _write(
        self,
        folder: str | os.PathLike[str],
        accumulator: Accumulator,
        figures: dict[str, float],
    ) -> None:
        # Meanwhile a training may have put its own there.
        _check_output_dir(folder)
        name = self._truth.name
        options: dict[str, Any] = {"dataset": name, "size_bins": str(self._size_bins)}
        options |= {"worst": self._worst, "version": d2_smallobj.__version__}
        run = ScoredRun.from_accumulator(accumulator, self._truth.class_names, options=options)
        # The flat figures, too, as detectron2 returns and logs them.
        save_run(folder, run, extra={"dataset": name, self.task: figures})


def evaluation_logger() -> logging.Logger:
    """Return the logger whose messages the running program shows.

    A project that does not know this package sets up detectron2's logger alone; ours would be
    silent there, and the figures missing from the screen and from ``log.txt``.
    """
    own = logging.getLogger("d2_smallobj")
    if not own.handlers and logging.getLogger("detectron2").handlers:
        return logging.getLogger("detectron2.small_objects")
    return logging.getLogger("d2_smallobj.evaluation")


def check_task(task: str) -> str:
    """Return a word, which is a key of the results (detectron2 joins them by "/") and a folder."""
    if not isinstance(task, str) or not re.fullmatch(r"[\w.-]+", task):
        raise ValueError(f"task must be a word of letters, digits, '_', '.' and '-', got {task!r}")
    return task


def _check_output_dir(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder in which our files would replace those of a training."""
    path = os.path.join(folder, METRICS_FILE)
    try:
        ours = "format" in read_json(path)
    except FileNotFoundError:
        return
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(
            f"output_dir: {path} is not of a scored run (a training writes a file of this name) and"
            f" would be overwritten; give a folder of its own, e.g. {os.path.join(folder, TASK)}"
        )


def _named(
    error: TypeError | ValueError, record: Mapping[str, Any], source: str = "", remedy: str = ""
) -> TypeError | ValueError:
    """Return the same error, naming the image."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{record.get('file_name', record.get('image_id'))}{source}: {error}{remedy}")
