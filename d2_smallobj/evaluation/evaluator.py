"""IA-mIoU and mIoU as a detectron2 evaluator.

Shapes: H, W height and width of the original image; C number of classes, background included.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import d2_smallobj
from d2_smallobj.data.catalog import canonical_name
from d2_smallobj.data.ground_truth import resolve
from d2_smallobj.metrics import COCO_SIZE_BINS, Accumulator
from d2_smallobj.metrics.sizes import as_size_bins
from d2_smallobj.scoring.run import ScoredRun
from d2_smallobj.scoring.run_files import save_run
from d2_smallobj.scoring.tables import format_figures
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

_logger = logging.getLogger(__name__)


class SmallObjectEvaluator(DatasetEvaluator):
    """Evaluates semantic segmentation by instance: ``{"sem_seg": {"IA-mIoU": ..., ...}}``.

    The figures and their order are those of :func:`d2_smallobj.metrics.summary.summarize`, in
    percent, NaN where undefined; they do not depend on how images were spread over processes.
    The semantic ground truth needs ``stuff_classes`` (background first) in the metadata and
    may have ``ignore_label`` (default 255); where it is read from is told by
    :mod:`d2_smallobj.data.ground_truth`.

    Args:
        dataset_name: registered name of the data set.
        distributed: gather the records of all processes on rank 0; with ``False`` every
            process evaluates what it saw.
        output_dir: folder for the files of a scored run, the same that ``tools/evaluate.py``
            writes (:mod:`d2_smallobj.scoring.run_files`); ``None`` writes nothing. Give the
            inference folder, not the training run's own, which has a ``metrics.json`` of
            another kind.
        mode: ``"exact"`` or ``"official"``, the authors' conventions
            (:func:`d2_smallobj.metrics.matching.match_image`).
        num_classes: C; default: the number of ``stuff_classes``. Needed only where the metadata
            has no names.
        size_bins: exclusive upper bounds in pixels by bin name, ascending, or
            :class:`d2_smallobj.metrics.SizeBins`.
        num_workers: threads that read ground truth and match while the model goes on; 0: all is
            done in :meth:`process`. The figures are the same; an image's error is then raised
            by a later call, :meth:`evaluate` at the latest.

    Raises:
        ValueError: if ``mode`` is unknown, ``num_workers`` is negative, or if the number of
            classes is not known or differs from the number of names.
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
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}")
        dataset_name = canonical_name(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self._class_names = _class_names(dataset_name, metadata, num_classes)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._mode = mode
        self._ignore_label = getattr(metadata, "ignore_label", 255)
        self._size_bins = as_size_bins(size_bins)
        self._read = resolve(dataset_name, num_classes=num_classes).read_record
        self._reader_is_open = False
        self._num_workers = num_workers
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: deque[concurrent.futures.Future[Accumulator]] = deque()
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
                (H, W) integer tensor of labels.

        Raises:
            TypeError: if an output is no integer labels and no scores.
            ValueError: if a prediction or its ground truth is malformed. The message names the
                image and its ground truth.
            FileNotFoundError: if a ground-truth file is missing.
        """
        for record, output in zip(inputs, outputs):
            name = record.get("file_name", record.get("image_id"))
            image_id = record.get("image_id", name)
            if image_id is None:
                raise ValueError(
                    f"inputs: every dict needs 'image_id' or 'file_name', got {sorted(record)}"
                )
            # The device is asked here: its results must not be overwritten meanwhile.
            try:
                labels = to_labels(output["sem_seg"], len(self._class_names))
            except (TypeError, ValueError) as error:
                raise _named(error, name, self._read(record).source) from error
            self._add(image_id, name, record, labels)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Compute, log and write the figures.

        Returns:
            ``{"sem_seg": figures}`` on rank 0; ``None`` on the others when distributed.

        Raises:
            ValueError: if two processes evaluated the same image.
            OSError: if a result file cannot be written.
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
        if not accumulator.images:
            _logger.warning("%s: no image was evaluated, all figures are NaN", self._dataset_name)
        figures = accumulator.summarize(self._class_names, size_bins=self._size_bins)
        _logger.info(
            "%s (mode %s), percent:\n%s",
            self._dataset_name,
            self._mode,
            format_figures(figures, self._class_names),
        )
        if self._output_dir is not None:
            self._write(accumulator, figures)
        return OrderedDict(sem_seg=figures)

    def _new_accumulator(self) -> Accumulator:
        return Accumulator(len(self._class_names), ignore_label=self._ignore_label, mode=self._mode)

    def _add(
        self, image_id: str | int, name: Any, record: Mapping[str, Any], labels: np.ndarray
    ) -> None:
        """Match one image, now or in a worker."""
        if self._num_workers == 0 or not self._reader_is_open:
            # The first one in any case: what the reader opens for all images is opened once.
            self._match(self._accumulator, image_id, name, record, labels)
            self._reader_is_open = True
            return
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._num_workers, "match")
        # A slow disk must not pile up predictions.
        self._collect(leave=4 * self._num_workers)

        def work() -> Accumulator:
            one = self._new_accumulator()
            self._match(one, image_id, name, record, labels)
            return one

        self._pending.append(self._pool.submit(work))

    def _match(
        self,
        accumulator: Accumulator,
        image_id: str | int,
        name: Any,
        record: Mapping[str, Any],
        labels: np.ndarray,
    ) -> None:
        truth = self._read(record)
        try:
            accumulator.update(image_id, labels, truth.semantic, truth.instances)
        except (TypeError, ValueError) as error:
            raise _named(error, name, truth.source) from error

    def _collect(self, leave: int = 0) -> None:
        """Take over what workers have done, in order, waiting until ``leave`` are pending."""
        while self._pending and (self._pending[0].done() or len(self._pending) > leave):
            self._accumulator.merge(self._pending.popleft().result())

    def _stop_workers(self) -> None:
        """Give up what is pending."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _write(self, accumulator: Accumulator, figures: dict[str, float]) -> None:
        options = {
            "dataset": self._dataset_name,
            "size_bins": str(self._size_bins),
            "version": d2_smallobj.__version__,
        }
        run = ScoredRun.from_accumulator(accumulator, self._class_names, options=options)
        # The flat figures, too, as detectron2 returns and logs them.
        save_run(self._output_dir, run, extra={"dataset": self._dataset_name, "sem_seg": figures})


def _named(error: TypeError | ValueError, name: Any, source: str) -> TypeError | ValueError:
    """The same error, naming the image and its ground truth."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name} (ground truth {source}): {error}")


def to_labels(prediction: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """Turn a model's output into a label map.

    Args:
        prediction: (C, H, W) scores of any kind (logits, probabilities; the largest wins), or
            (H, W) integer labels; on any device.
        num_classes: C.

    Returns:
        (H, W) integer labels, uint8 from scores of at most 256 classes.

    Raises:
        TypeError: if a two-dimensional prediction is not of integers.
        ValueError: if it has neither two nor three dimensions, or C differs.
    """
    prediction = torch.as_tensor(prediction)
    shape = tuple(prediction.shape)
    if prediction.ndim == 2:
        if prediction.is_floating_point() or prediction.dtype == torch.bool:
            raise TypeError(
                f"sem_seg: a (H, W) prediction must hold integer labels, got {prediction.dtype}"
            )
        return prediction.cpu().numpy()
    if prediction.ndim != 3 or shape[0] != num_classes:
        raise ValueError(
            f"sem_seg must be ({num_classes}, H, W) scores for {num_classes} classes"
            f" or (H, W) labels, got shape {shape}"
        )
    # As argmax, the first of equal scores; on a CPU three times as fast.
    labels = prediction.max(dim=0).indices
    # Narrowed before it leaves the device: an eighth of the bytes to copy.
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int32).cpu().numpy()


def _class_names(dataset_name: str, metadata: Any, num_classes: int | None) -> list[str]:
    """Names of the classes, background first; their numbers where the metadata has none."""
    names = getattr(metadata, "stuff_classes", None)
    if names is None and num_classes is None:
        raise ValueError(
            f"dataset_name: the metadata of {dataset_name!r} has no stuff_classes; register the"
            " data set, set them (background first), or give num_classes"
        )
    if names is None:
        return [str(category) for category in range(num_classes)]
    if num_classes is not None and num_classes != len(names):
        raise ValueError(
            f"num_classes must be {len(names)}, the number of stuff_classes of {dataset_name!r},"
            f" got {num_classes}"
        )
    return list(names)
