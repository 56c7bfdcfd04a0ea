"""Merge the shards of a run, each scored by ``--shard i/n``."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2_smallobj.metrics import BlobTable, InstanceTable, PixelTable
from d2_smallobj.scoring.inputs import DatasetOpener
from d2_smallobj.scoring.run_folder import load_run
from d2_smallobj.scoring.scored_run import PixelSources, ScoredRun
from d2_smallobj.utils.messages import listed

_SHARD = re.compile(r"(\d+)/(\d+)")


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, i from 1 to n; ValueError for anything else."""
    match = _SHARD.fullmatch(text.strip())
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"--shard must be i/n with i in 1..n, e.g. 1/4, got {text!r}")
    return part, parts


def merge(
    folders: Sequence[str | os.PathLike[str]],
    *,
    name: str = "",
    open_dataset: DatasetOpener | None = None,
) -> ScoredRun:
    """Merge the shards of a run, in any order: to the bit what one run over all images gives.

    Raises ValueError if a shard is missing, given twice, or was scored with different inputs,
    options or classes.
    """
    if not folders:
        raise ValueError("merge: give the folders of all shards, got none")
    runs = [load_run(folder) for folder in folders]
    _check_shards(runs, [Path(folder) for folder in folders])
    files = {image: paths for run in runs for image, paths in run.sources.files.items()}
    ids = sorted(image for run in runs for image in run.images)
    options = {key: value for key, value in runs[0].options.items() if key != "shard"}
    sources = PixelSources({image: files[image] for image in ids}, options["inputs"], open_dataset)
    merged = dataclasses.replace(
        runs[0],
        name=name,
        options=options,
        table=InstanceTable.concatenate([run.table for run in runs]).sorted(),
        blobs=BlobTable.concatenate([run.blobs for run in runs]).sorted(),
        images=ids,
        pixels=PixelTable.concatenate([run.pixels for run in runs]).sorted(),
        confusion=np.sum([run.confusion for run in runs], axis=0),
        sources=sources,
    )
    return merged.with_intervals()


def _check_shards(runs: Sequence[ScoredRun], folders: Sequence[Path]) -> None:
    """Refuse anything but all shards of one run."""
    where: dict[tuple[int, int], Path] = {}
    first = runs[0]
    for scored, folder in zip(runs, folders):
        if "shard" not in scored.options:
            raise ValueError(f"merge: {folder} is no shard (it was scored without --shard)")
        shard = parse_shard(str(scored.options["shard"]))
        if shard in where:
            raise ValueError(
                f"merge: shard {shard[0]}/{shard[1]} is given twice: {where[shard]} and {folder}"
            )
        where[shard] = folder
        pairs = {
            key: (first.options.get(key), scored.options.get(key))
            for key in sorted({*first.options, *scored.options} - {"shard"})
        }
        pairs["classes"] = (first.class_names, scored.class_names)
        pairs["remarks"] = (first.remarks, scored.remarks)
        for key, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise ValueError(
                    f"merge: shards of different runs: {key} is {mine!r} in {folders[0]}, "
                    f"{theirs!r} in {folder}"
                )
    counts = {parts for _, parts in where}
    if len(counts) > 1:
        raise ValueError(f"merge: shards of different numbers of shards, {sorted(counts)}")
    parts = counts.pop()
    missing = [f"{part}/{parts}" for part in range(1, parts + 1) if (part, parts) not in where]
    if missing:
        raise ValueError(f"merge: {len(missing)} shard(s) missing: {listed(missing)}")
