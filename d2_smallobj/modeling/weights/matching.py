"""Which tensor of a file belongs to which of the model's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor

# Counters, and the normalisation of images, which the config decides.
_WITHOUT_MEANING = re.compile(r"(?:^|\.)(?:num_batches_tracked|pixel_mean|pixel_std)$")
_STATISTICS = re.compile(r"^(.*\.norm)\.running_(?:mean|var)$")
_RESNET = re.compile(r"(?:^|\.)(stem|res[2-5])\.")


@dataclasses.dataclass
class Match:
    """The pairs of a model's and a file's tensors, and what has no partner.

    Attributes:
        pairs: key of the model to name in the file; shapes agree.
        wrong_shape: key of the model to the shapes (file, model) of a pair that cannot be.
        missing: keys of the model that the file has nothing for.
        unused: names in the file that the model has no place for.
    """

    pairs: dict[str, str] = dataclasses.field(default_factory=dict)
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
        default_factory=dict
    )
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)

    def resnet_differences(self) -> dict[str, list[str]]:
        """Where the file's ResNet is another one than the model's, by kind of difference.

        Another depth or width cannot be an initialisation: blocks would follow on features
        that they were never trained on. Stages that the model has no block of do not count, so
        that a cut ResNet can start from a whole one.
        """
        stages = {stage for key in self._model_keys() for stage in _RESNET.findall(key)}
        in_stages = [n for n in self.unused if stages.intersection(_RESNET.findall(n))]
        kinds = {
            "with other shapes": [key for key in self.wrong_shape if _RESNET.search(key)],
            "only in the model": [key for key in self.missing if _RESNET.search(key)],
            # Caffe's first convolution comes with a bias of about 1e-9.
            "only in the file": [n for n in in_stages if not n.endswith("stem.conv1.bias")],
        }
        return {kind: names for kind, names in kinds.items() if names}

    def _model_keys(self) -> Iterator[str]:
        yield from self.pairs
        yield from self.wrong_shape
        yield from self.missing


def match_weights(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, by_suffix: bool
) -> Match:
    """Pair the tensors of a model with those of a file.

    Args:
        model: the model's state dict.
        weights: the file's, in detectron2's names.
        by_suffix: whether a name in the file may be the end of the model's, after a dot; the
            longest one wins.

    Raises:
        ValueError: if two of the model's tensors would take one of the file's.
    """
    match = Match()
    taken: dict[str, str] = {}
    for key, value in model.items():
        name = _partner(key, weights, by_suffix)
        if name is None:
            match.missing.append(key)
            continue
        if name in taken:
            raise ValueError(
                f"{name!r} in the file matches both {taken[name]!r} and {key!r} of the model"
            )
        taken[name] = key
        shapes = tuple(weights[name].shape), tuple(value.shape)
        if shapes[0] == shapes[1]:
            match.pairs[key] = name
        else:
            match.wrong_shape[key] = shapes
    match.missing = _needed(match.missing, match.pairs)
    match.unused = [n for n in weights if n not in taken and not _WITHOUT_MEANING.search(n)]
    return match


def _partner(key: str, weights: Collection[str], by_suffix: bool) -> str | None:
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts) if by_suffix else 1))
    return next((end for end in ends if end in weights), None)


def _needed(missing: Iterable[str], pairs: Collection[str]) -> list[str]:
    """Leave out what a file need not hold.

    Caffe's norms have their statistics folded into scale and shift: mean 0 and variance 1, which
    the model starts with, are then right.
    """
    with_statistics = {m[1] for m in map(_STATISTICS.match, pairs) if m}
    needed = []
    for key in missing:
        statistic = _STATISTICS.match(key)
        folded = (
            statistic and f"{statistic[1]}.weight" in pairs and statistic[1] not in with_statistics
        )
        if not folded and not _WITHOUT_MEANING.search(key):
            needed.append(key)
    return needed
