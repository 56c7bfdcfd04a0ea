"""Weights of a file into a model, with an account of what was loaded and what was not."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2_smallobj.modeling.weight_layouts import (
    DETECTRON2,
    TORCHVISION_CONVENTIONS,
    Layout,
    convention_mismatches,
    detect_layout,
    strip_wrappers,
)
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_LISTED = 10
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


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """What a file gave to a model.

    Attributes:
        layout: how the file names its tensors.
        match: the pairs, and what has none.
        names: detectron2's name to the file's own.
        skipped: entries of the file that are not tensors.
    """

    layout: Layout
    match: Match
    names: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    def summary(self, source: str) -> str:
        """A few lines for the log: counts and groups of names."""
        match = self.match
        total = len(match.pairs) + len(match.missing) + len(match.wrong_shape)
        lines = [
            f"{source} ({self.layout.description}): {len(match.pairs)} of the model's {total} "
            f"tensors loaded: {group_names(match.pairs, limit=0)}"
        ]
        if match.missing:
            lines.append(f"  not in the file, left as initialised: {group_names(match.missing)}")
        unused = [self.names[name] for name in match.unused] + list(self.skipped)
        if unused:
            lines.append(f"  in the file, not used: {group_names(unused)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    *,
    source: str,
    author: str = "",
    by_suffix: bool = False,
    complete: bool = False,
    cfg: CfgNode | None = None,
) -> LoadedWeights:
    """Load a file's weights, whatever layout they are in, and log what was and was not loaded.

    Layouts: detectron2's own names; Caffe2's blobs (MSRA's R-50 and R-101); torchvision's ResNet;
    kazuto1011/deeplab-pytorch. Detected by the names; see :mod:`.layouts`.

    Args:
        model: takes the weights; a tensor that the file lacks stays as it is.
        weights: name to tensor or numpy array; other entries are named and left out.
        source: the file, for messages.
        author: who made the file, as detectron2's ``__author__``.
        by_suffix: match the ends of the model's names even where the file is in detectron2's
            own layout (``matching_heuristics``).
        complete: whether every tensor of the model must be in the file, as in an evaluation.
            Otherwise the weights are initial ones: a head for other classes is named in a
            warning and left at its initialisation.
        cfg: what the weights' conventions (channel order, mean, stride) are compared with; a
            difference is a warning.

    Raises:
        ValueError: naming ``source`` and the first ten names, if nothing matches, values are not
            finite, the file's ResNet is another one, or ``complete`` and something is missing.
    """
    tensors, skipped = _tensors(weights, source)
    layout = detect_layout(tensors)
    names = _rename(tensors, layout, source)
    renamed = {new: tensors[name] for new, name in names.items()}
    state = model.state_dict()
    by_suffix = by_suffix or layout is not DETECTRON2 or not any(n in state for n in renamed)
    match = match_weights(state, renamed, by_suffix=by_suffix)
    loaded = LoadedWeights(layout, match, names, skipped)
    _check(loaded, state, source, complete)
    values = OrderedDict((key, renamed[name]) for key, name in match.pairs.items())
    if layout is DETECTRON2 and hasattr(weights, "_metadata"):
        values._metadata = weights._metadata  # versions of the modules' states
    model.load_state_dict(values, strict=False)
    logger.info(loaded.summary(source))
    _warn(loaded, source, author, cfg)
    return loaded


def _tensors(weights: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file, and the names of its other entries."""
    tensors, skipped = {}, []
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            # Torch knows native byte order only, and shares memory with writable arrays only.
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
        if isinstance(value, Tensor):
            tensors[str(name)] = value
        else:
            skipped.append(str(name))
    infinite = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if infinite:
        raise ValueError(
            f"{source} holds values that are not finite in {_listed(infinite)}; it is damaged, or "
            "the run that wrote it had diverged"
        )
    if not tensors:
        raise ValueError(f"{source} holds no weights, but {_listed(skipped)}")
    return tensors, tuple(skipped)


def _rename(tensors: Iterable[str], layout: Layout, source: str) -> dict[str, str]:
    """Detectron2's name to the file's own."""
    names: dict[str, str] = {}
    # In detectron2's own layout only DistributedDataParallel's prefix is none of the model's.
    parallel = layout is DETECTRON2 and all(name.startswith("module.") for name in tensors)
    for name in tensors:
        bare = name[len("module.") :] if parallel else name
        new = layout.rename(bare if layout is DETECTRON2 else strip_wrappers(bare))
        if new in names:
            raise ValueError(f"{source}: {names[new]!r} and {name!r} are both {new!r}")
        names[new] = name
    return names


def _check(loaded: LoadedWeights, state: Mapping[str, Tensor], source: str, complete: bool) -> None:
    """Refuse what would not be the weights that were asked for."""
    match = loaded.match
    if not match.pairs and not match.wrong_shape:
        raise ValueError(
            f"{source} ({loaded.layout.description}) fits nothing in the model: it has "
            f"{_listed(list(loaded.names.values()), 3)}; the model has {_listed(list(state), 3)}"
        )
    differences = match.resnet_differences()
    if differences:
        kinds = "; ".join(f"{kind}: {_listed(names)}" for kind, names in differences.items())
        raise ValueError(
            f"{source} holds another ResNet than the model's ({kinds}). MODEL.RESNETS (DEPTH, "
            "widths, NORM) must be those of the file"
        )
    if not complete:
        if not match.pairs:
            raise ValueError(f"{source} fits the model nowhere: {_shapes(match)}")
        return
    problems = []
    if match.wrong_shape:
        problems.append(_shapes(match))
    if match.missing:
        problems.append(f"it lacks {_listed(match.missing)}")
    if problems:
        raise ValueError(f"{source} does not hold the whole model: {'; '.join(problems)}")


def _warn(loaded: LoadedWeights, source: str, author: str, cfg: CfgNode | None) -> None:
    if loaded.match.wrong_shape:
        logger.warning(
            f"{source}: {_shapes(loaded.match)}. They are not loaded: these parts start from "
            "their random initialisation"
        )
    conventions = loaded.layout.conventions
    if loaded.layout is DETECTRON2 and author == "torchvision":
        conventions = TORCHVISION_CONVENTIONS
    mismatches = convention_mismatches(cfg, conventions) if cfg and conventions else []
    if mismatches:
        logger.warning(
            f"{source}: these weights were trained on another input or geometry than the config "
            f"gives them: {'; '.join(mismatches)}"
        )


def _shapes(match: Match) -> str:
    """The pairs of other shapes, and whether it is the number of classes that differs."""
    shapes = match.wrong_shape
    pairs = [f"{key} {file} in the file, {own} here" for key, (file, own) in shapes.items()]
    text = f"shapes differ: {_listed(pairs, 2)}"
    # Only the number of output channels differs, and everywhere alike.
    same_inside = all(file[1:] == own[1:] for file, own in shapes.values())
    channels = {(file[:1], own[:1]) for file, own in shapes.values()}
    if same_inside and len(channels) == 1 and all(next(iter(channels))):
        ((file,), (own,)) = channels.pop()
        text += f"; a head for {file} classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {own}"
    return text


def group_names(names: Iterable[str], limit: int = _LISTED) -> str:
    """Names in few words: all of them up to ``limit``, else their first two parts with counts."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names)
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    groups = [f"{name} ({count})" for name, count in counts.items()]
    more = f" and {len(groups) - 2 * _LISTED} more groups" if len(groups) > 2 * _LISTED else ""
    return ", ".join(groups[: 2 * _LISTED]) + more


def _listed(names: list[str], limit: int = _LISTED) -> str:
    """The first names and how many there are."""
    more = f" … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
