"""A training stream in which position decides everything: image, order and augmentation.

Position p is the p-th image that training sees, counted over all processes. With p known, a
resumed run continues with the very sample that the killed one would have seen next, for any
number of loader workers; and N processes see together what one process sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from detectron2.data.samplers import TrainingSampler


class StreamSampler(TrainingSampler):
    """detectron2's training order, from any position on, with the position kept.

    Yields ``position * size + index``, from which :class:`StreamDataset` gets both back: an
    integer is all that passes through detectron2's loaders.

    Args:
        size: number of images in the data set.
        seed: seed of the order; the same on all processes.
        start: the first position.
    """

    def __init__(self, size: int, *, seed: int, start: int = 0) -> None:
        super().__init__(size, shuffle=True, seed=seed)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        first = self._start + self._rank
        order = itertools.islice(self._infinite_indices(), first, None, self._world_size)
        for position, index in zip(itertools.count(first, self._world_size), order):
            yield position * self._size + int(index)


class StreamDataset(Dataset):
    """Dataset dicts that know their position in the stream (key ``stream_position``).

    Args:
        dicts: detectron2 dataset dicts.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        self.dicts = dicts

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, code: int) -> dict[str, Any]:
        position, index = divmod(int(code), len(self.dicts))
        return {**self.dicts[index], "stream_position": position}
