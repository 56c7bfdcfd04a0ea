"""Data sets around a mapping function, and around a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils import data

from d2_smallobj._host import rebuild


class _Rebuilt:
    """Pickles by way of d2_smallobj, for workers that do not know the embedded host yet."""

    def __reduce__(self) -> tuple:
        return rebuild, (type(self).__module__, type(self).__qualname__, self.__dict__)


class MapDataset(_Rebuilt, data.Dataset):
    """A function applied to the elements of a list or a map-style data set."""

    def __init__(
        self, dataset: Sequence[Any] | data.Dataset, map_func: Callable[[Any], Any]
    ) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        return self._map_func(self._dataset[idx])


class ToIterableDataset(_Rebuilt, data.IterableDataset):
    """A map-style data set in the order of a sampler.

    Every loader worker runs the sampler and keeps its share: whole chunks of indices in turn.
    With the batch size as the chunk, the stream of batches is the same for every number of
    workers.
    """

    def __init__(self, dataset: data.Dataset, sampler: Iterable[int], chunk_size: int) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._chunk_size = chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info()
        for position, idx in enumerate(self._sampler):
            turn = position // self._chunk_size
            if worker is None or turn % worker.num_workers == worker.id:
                yield self._dataset[idx]
