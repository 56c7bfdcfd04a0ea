"""Load the weights of a file into a model, and log what was loaded and what was not."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2_smallobj.modeling.deeplab_v2 import BLOCKS_PER_STAGE
from d2_smallobj.modeling.weight_layouts import (
    DETECTRON2,
    TORCHVISION_CONVENTIONS,
    Layout,
    convention_mismatches,
    detect_layout,
    strip_wrappers,
)
from d2_smallobj.utils.messages import listed
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

# Counters, and the normalisation of images, which the config decides.
_NOT_WEIGHTS = re.compile(r"(?:^|\.)(?:num_batches_tracked|pixel_mean|pixel_std)$")
_STATISTICS = re.compile(r"^(.*\.norm)\.running_(?:mean|var)$")
# The parts of a backbone by its kind, as they are named in the model.
_BACKBONES = {
    "ResNet": re.compile(r"(?:^|\.)(stem|res[2-5])\."),
    "MobileNetV2": re.compile(r"(?:^|\.)(features\.\d+)\.(?:conv|expand|depthwise|project)\."),
}
_BACKBONE_KEYS = {
    "ResNet": "MODEL.RESNETS (DEPTH, widths, NORM)",
    "MobileNetV2": "SMALLOBJ.MOBILENET.WIDTH and MODEL.RESNETS.NORM",
}


_BLOCK = re.compile(r"(?:^|\.)(res[2-5])\.(\d+)\.")
# Of ResNet-34 and -50, which have the same numbers, the latter.
_DEPTHS: dict[tuple[int, ...], int] = {blocks: n for n, blocks in BLOCKS_PER_STAGE.items()}


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Count the blocks of each stage of the ResNet whose tensors are named."""
    found: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.search, names)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


@dataclasses.dataclass
class Match:
    """The pairs of a model's and a file's tensors, and what has no partner.

    Attributes:
        pairs: key of the model to name in the file; shapes agree.
        wrong_shape: key of the model to the shapes (file, model) of a pair that does not fit.
        missing: keys of the model that the file has nothing for.
        unused: names in the file that the model has no place for.
    """

    pairs: dict[str, str]
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: list[str]
    unused: list[str]

    def backbone_differences(self, kind: str) -> dict[str, list[str]]:
        """Names in which the file's backbone differs from the model's, by kind of difference.

        Stages that the model lacks do not count: a cut net can start from a whole one.
        """
        part = _BACKBONES[kind]
        keys = (*self.pairs, *self.wrong_shape, *self.missing)
        stages = {stage for key in keys for stage in part.findall(key)}
        # Caffe's first convolution comes with a bias of about 1e-9.
        unused = [name for name in self.unused if not name.endswith("stem.conv1.bias")]
        kinds = {
            "with other shapes": [key for key in self.wrong_shape if part.search(key)],
            "only in the model": [key for key in self.missing if part.search(key)],
            "only in the file": [n for n in unused if stages.intersection(part.findall(n))],
        }
        return {kind: names for kind, names in kinds.items() if names}

    def depth_message(self) -> str:
        """Say which depths file and model have, where these differ; else nothing."""
        own = _blocks((*self.pairs, *self.wrong_shape, *self.missing))
        file = _blocks((*self.pairs.values(), *self.wrong_shape, *self.unused))
        if not own.keys() <= file.keys() or all(file[stage] == own[stage] for stage in own):
            return ""
        told = []
        for blocks in (file, own):
            counts = [blocks[stage] for stage in sorted(blocks)]
            depth = _DEPTHS.get(tuple(counts))
            told.append(f"{f'DEPTH {depth}, ' if depth else ''}{counts} blocks")
        return f"the file's is {told[0]}, the model's {told[1]}"

    def shape_message(self) -> str:
        """The pairs of other shapes; says so if only the number of classes differs."""
        shapes = self.wrong_shape
        pairs = [f"{key} {file} in the file, {own} here" for key, (file, own) in shapes.items()]
        text = f"shapes differ: {listed(pairs, 2)}"
        # Only the number of output channels differs, and everywhere alike.
        same_inside = all(file[1:] == own[1:] for file, own in shapes.values())
        channels = {(file[:1], own[:1]) for file, own in shapes.values()}
        if same_inside and len(channels) == 1 and all(next(iter(channels))):
            ((file,), (own,)) = channels.pop()
            text += f"; a head for {file} classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {own}"
        return text


def match_weights(
    model: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, by_suffix: bool
) -> Match:
    """Pair the tensors of a model's state dict with those of a file, in detectron2's names.

    With ``by_suffix`` a name in the file may be the end of the model's, after a dot; the longest
    wins. One tensor of the file for two of the model is an error.
    """
    taken: dict[str, str] = {}
    match = Match({}, {}, [], [])
    for key, value in model.items():
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) if by_suffix else 1))
        name = next((end for end in ends if end in weights), None)
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
    match.unused = [n for n in weights if n not in taken and not _NOT_WEIGHTS.search(n)]
    return match


def _needed(missing: Iterable[str], pairs: Collection[str]) -> list[str]:
    """Leave out what a file need not hold: statistics that Caffe has folded into its norms."""
    with_statistics = {m[1] for m in map(_STATISTICS.match, pairs) if m}
    needed = []
    for key in missing:
        norm = _STATISTICS.match(key)
        folded = norm and f"{norm[1]}.weight" in pairs and norm[1] not in with_statistics
        if not folded and not _NOT_WEIGHTS.search(key):
            needed.append(key)
    return needed


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    *,
    source: str,
    author: str = "",
    by_suffix: bool = False,
    complete: bool = False,
    cfg: CfgNode | None = None,
) -> None:
    """Load a file's tensors or arrays in any of :mod:`.weight_layouts`; log what was loaded.

    ``source`` and ``author`` (detectron2's ``__author__``) describe the file. ``by_suffix`` matches
    the ends of names even in detectron2's own layout (``matching_heuristics``). ``complete``
    requires every tensor of the model, as an evaluation does; otherwise a head for other classes
    is named in a warning and keeps its initialisation. A ``cfg`` that does not fit the weights'
    conventions is a warning too; a file that does not fit the model is a ``ValueError``.
    """
    tensors, skipped = _tensors(weights, source)
    layout = detect_layout(tensors)
    names = _rename(tensors, layout, source)
    renamed = {new: tensors[name] for new, name in names.items()}
    state = model.state_dict()
    by_suffix = by_suffix or layout is not DETECTRON2 or not any(n in state for n in renamed)
    where = f"{source} ({layout.description})"
    _check_kind(state, renamed, where)
    match = match_weights(state, renamed, by_suffix=by_suffix)
    if not match.pairs and not match.wrong_shape:
        raise ValueError(
            f"{where} fits nothing in the model: it has {listed(names.values(), 3)}; "
            f"the model has {listed(state, 3)}"
        )
    _check(match, source, complete)
    values = OrderedDict((key, renamed[name]) for key, name in match.pairs.items())
    if layout is DETECTRON2 and hasattr(weights, "_metadata"):
        # Versions of the modules' states.
        values._metadata = weights._metadata  # type: ignore[attr-defined]  # torch's own habit
    model.load_state_dict(values, strict=False)
    total = len(match.pairs) + len(match.missing) + len(match.wrong_shape)
    lines = [f"{where}: {len(match.pairs)} of the model's {total} tensors loaded: "]
    lines[0] += _grouped(match.pairs, limit=0)
    if match.missing:
        lines.append(f"  not in the file, left as initialised: {_grouped(match.missing)}")
    unused = [names[name] for name in match.unused] + skipped
    if unused:
        lines.append(f"  in the file, not used: {_grouped(unused)}")
    logger.info("\n".join(lines))
    if match.wrong_shape:
        logger.warning(
            f"{source}: {match.shape_message()}. They are not loaded: these parts start from "
            "their random initialisation"
        )
    conventions = layout.conventions
    if layout is DETECTRON2 and author == "torchvision":
        conventions = TORCHVISION_CONVENTIONS
    if cfg and conventions and (mismatches := convention_mismatches(cfg, conventions)):
        logger.warning(
            f"{source}: these weights were trained on another input or geometry than the config "
            f"gives them: {'; '.join(mismatches)}"
        )


def _tensors(weights: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], list[str]]:
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
            f"{source} holds values that are not finite in {listed(infinite)}; it is damaged, or "
            "the run that wrote it had diverged"
        )
    if not tensors:
        raise ValueError(f"{source} holds no weights, but {listed(skipped)}")
    return tensors, skipped


def _rename(tensors: Iterable[str], layout: Layout, source: str) -> dict[str, str]:
    """Map detectron2's names to the file's own."""
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


def _backbones(names: Iterable[str]) -> list[str]:
    """The kinds of backbones that have parts among the names."""
    names = list(names)
    return [kind for kind, part in _BACKBONES.items() if any(map(part.search, names))]


def _check_kind(model: Iterable[str], file: Iterable[str], where: str) -> None:
    """Refuse the weights of another kind of backbone."""
    own, other = _backbones(model), _backbones(file)
    if own and other and not set(own).intersection(other):
        raise ValueError(
            f"{where} holds a {other[0]}, and the model is a {own[0]}: give MODEL.WEIGHTS of a "
            f"{own[0]}, or a MODEL.BACKBONE.NAME that builds a {other[0]}"
        )


def _check(match: Match, source: str, complete: bool) -> None:
    """Refuse another net of the model's kind, and a file that does not hold what was asked for."""
    for kind in _backbones((*match.pairs, *match.wrong_shape, *match.missing)):
        differences = match.backbone_differences(kind)
        if differences:
            kinds = "; ".join(f"{name}: {listed(names, 2)}" for name, names in differences.items())
            raise ValueError(
                f"{source} holds another {kind} than the model's ({match.depth_message() or kinds})"
                f". {_BACKBONE_KEYS[kind]} must be those of the file"
            )
    problems = [match.shape_message()] if match.wrong_shape else []
    if not complete and not match.pairs:
        raise ValueError(f"{source} fits the model nowhere: {problems[0]}")
    if match.missing:
        problems.append(f"it lacks {listed(match.missing)}")
    if complete and problems:
        raise ValueError(f"{source} does not hold the whole model: {'; '.join(problems)}")


def _grouped(names: Collection[str], limit: int = 10) -> str:
    """Names up to ``limit``, else their first two parts with counts."""
    if len(names) <= limit:
        return ", ".join(names)
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return listed([f"{name} ({count})" for name, count in counts.items()], 20)
