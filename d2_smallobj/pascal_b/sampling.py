"""Choose images so that instances spread evenly over class × size.

With n_c instances of cell c (a class and a size) in the chosen images and a target t_c, the choice
solves

    minimise Σ_c |n_c − t_c|   over sets of N images,

as a mixed-integer linear program (SciPy's HiGHS). Images with the same counts are one integer
variable, so that LVIS's 40,000 candidates are some 8,000; which of them are taken is drawn at
random. The target is one number t for all cells, except that t_c is what there is where that is
less. By default t is such that the targets sum to the instances of N average candidates: neither
crowded nor empty images are preferred. A larger t asks for more crowded ones.

Legend: M images; K cells; N images to choose.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.pascal_b.candidates import Candidate, Outcome
from d2_smallobj.pascal_b.near_duplicates import NearDuplicate, PictureCheck
from d2_smallobj.pascal_b.screening import Verdict
from d2_smallobj.utils.installation import explained_imports

_NODES = 200
"""Nodes of the search; not seconds, which would make the result depend on the machine."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A choice of images; arrays are int64."""

    chosen: np.ndarray  # (N,), positions of the images, ascending
    counts: np.ndarray  # (K,), instances of the chosen images
    available: np.ndarray  # (K,), instances of all images
    per_cell: int  # t, the number wanted of every cell
    target: np.ndarray  # (K,), min(t, available)
    distance: int  # Σ |counts − target|
    bound: int  # no choice of N images has a smaller distance


def sample_balanced(
    counts: np.ndarray, number: int, *, seed: int = 0, per_cell: int | None = None
) -> Sample:
    """Choose N images whose instances are spread as evenly as possible.

    ``counts`` are int64 (M, K), M >= 1, instances of every image by cell; ``number`` is N >= 1 (all
    are chosen if there are fewer), ``per_cell`` t >= 1 (None: see the module's docstring); the seed
    chooses between equally good sets. Raises ImportError without SciPy.
    """
    number = min(number, len(counts))
    available = counts.sum(axis=0)
    if per_cell is None:
        per_cell = water_level(available, number * available.sum() / len(counts))
    target = np.minimum(available, per_cell)
    patterns, members, copies = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(patterns))
    taken = np.zeros(len(patterns), np.int64)
    taken[order], bound = _solve(patterns[order], copies[order], target, number)
    chosen = _draw_members(rng, members.ravel(), taken)
    reached = counts[chosen].sum(axis=0)
    distance = _distance(patterns, taken, target)
    return Sample(chosen, reached, available, per_cell, target, distance, min(bound, distance))


def water_level(available: np.ndarray, total: float) -> int:
    """The smallest t >= 1 for which Σ min(t, available) reaches a total, else the largest count."""
    # Number of cells with more than 0, 1, ... instances; summed up, the totals of t = 1, 2, ...
    fuller = len(available) - np.cumsum(np.bincount(available))
    level = int(np.searchsorted(np.cumsum(fuller), total)) + 1
    return max(1, min(level, int(available.max())))


def _solve(
    patterns: np.ndarray, copies: np.ndarray, target: np.ndarray, number: int
) -> tuple[np.ndarray, int]:
    """Solve for the number of images of every pattern, with a lower bound of the distance."""
    sparse, optimize = import_scipy()
    count, cells = patterns.shape
    # Columns: patterns, then what each cell lacks, then what it has too much.
    identity = sparse.identity(cells)
    rows = [
        sparse.hstack([sparse.csr_matrix(patterns.T), identity, -identity]),
        sparse.csr_matrix(([1.0] * count, ([0] * count, range(count))), (1, count + 2 * cells)),
    ]
    matrix = sparse.vstack(rows).tocsc()
    goal = np.append(target, number).astype(float)
    cost = np.append(np.zeros(count), np.ones(2 * cells))
    highest = np.append(copies.astype(float), np.full(2 * cells, np.inf))
    limits = np.stack([np.zeros(len(cost)), highest], axis=1)
    relaxed = optimize.linprog(cost, A_eq=matrix, b_eq=goal, bounds=limits, method="highs")
    if relaxed.x is None:
        raise RuntimeError(f"HiGHS found no balanced choice: {relaxed.message}")
    taken = _round_solution(relaxed.x[:count], copies, number)
    bound = _round_up(relaxed.fun)
    # The distance is an integer, so that a gap below 1 proves the optimum; HiGHS takes the gap
    # relative to the distance: tried with the bound first, then with the distance reached.
    for attempt in range(2):
        reached = _distance(patterns, taken, target)
        if reached == bound:
            break
        found = optimize.milp(
            cost,
            constraints=optimize.LinearConstraint(matrix, goal, goal),
            bounds=optimize.Bounds(0, highest),
            integrality=np.append(np.ones(count), np.zeros(2 * cells)),
            options={
                "node_limit": _NODES,
                "mip_rel_gap": 0.99 / max(1, reached if attempt else bound),
            },
        )
        if found.mip_dual_bound is not None and math.isfinite(found.mip_dual_bound):
            bound = max(bound, _round_up(found.mip_dual_bound))
        if found.x is not None:
            better = _round_solution(found.x[:count], copies, number)
            taken = min(taken, better, key=lambda one: _distance(patterns, one, target))
        if found.status != 0:
            break
    return taken, bound


def _distance(patterns: np.ndarray, taken: np.ndarray, target: np.ndarray) -> int:
    """Σ |instances − target|."""
    return int(np.abs(taken @ patterns - target).sum())


def _round_up(value: float) -> int:
    """The next integer, within the solver's tolerance."""
    return max(0, math.ceil(value - 1e-5))


def _round_solution(solution: np.ndarray, copies: np.ndarray, number: int) -> np.ndarray:
    """Round a solution to integers that sum to N: int64."""
    taken = np.minimum(np.floor(solution + 1e-6), copies).astype(np.int64)
    by_remainder = np.argsort(taken - solution, kind="stable")
    while taken.sum() < number:
        room = by_remainder[taken[by_remainder] < copies[by_remainder]]
        taken[room[: number - int(taken.sum())]] += 1
    return taken


def _draw_members(rng: np.random.Generator, members: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Draw images of every pattern: positions, ascending."""
    shuffled = rng.permutation(len(members))
    by_pattern = shuffled[np.argsort(members[shuffled], kind="stable")]
    pattern = members[by_pattern]
    first = np.searchsorted(pattern, np.arange(len(taken)))
    rank = np.arange(len(pattern)) - first[pattern]
    return np.sort(by_pattern[rank < taken[pattern]])


def import_scipy() -> tuple[Any, Any]:
    """Import ``scipy.sparse`` and ``scipy.optimize``."""
    with explained_imports():
        from scipy import optimize, sparse

    return sparse, optimize


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The chosen images, by image id."""

    chosen: tuple[Candidate, ...]
    dropped: Mapping[int, Outcome]  # why each other image of the inputs is not chosen
    counts: np.ndarray  # int64 (M, 60), instances by class and size of all fit images
    sample: Sample  # the choice among these
    near_duplicates: tuple[NearDuplicate, ...]  # left out because VOC has them


def select(
    candidates: Mapping[int, Candidate],
    dropped: Mapping[int, Outcome],
    verdicts: Sequence[Verdict],
    pictures: PictureCheck | None,
    *,
    number: int,
    seed: int,
    per_cell: int | None,
) -> Selection:
    """Choose among the fit candidates by :func:`sample_balanced`.

    ``dropped`` says why the other images are no candidates. ``pictures`` checks the pictures of
    those that are chosen: near-duplicates of VOC's are left out and the choice made again.

    Raises:
        ValueError: no candidate is fit, or a picture is unreadable or of another size.
        FileNotFoundError: pictures are missing.
    """
    dropped = {**dropped, **{v.image_id: v.outcome for v in verdicts if v.outcome is not None}}
    fit = {verdict.image_id: verdict.counts for verdict in verdicts if verdict.outcome is None}
    duplicates: dict[int, NearDuplicate] = {}
    while True:
        image_ids = [image_id for image_id in fit if image_id not in duplicates]
        if not image_ids:
            raise ValueError(
                _nothing_fit({**dict.fromkeys(fit, Outcome.NEAR_DUPLICATE), **dropped})
            )
        counts = np.stack([fit[image_id] for image_id in image_ids])
        sample = sample_balanced(counts, number, seed=seed, per_cell=per_cell)
        chosen = tuple(candidates[image_ids[n]] for n in sample.chosen.tolist())
        found = pictures.near_duplicates(chosen) if pictures is not None else []
        if not found:
            break
        duplicates.update({duplicate.image_id: duplicate for duplicate in found})
    taken = {candidate.image_id for candidate in chosen}
    dropped.update(dict.fromkeys(duplicates, Outcome.NEAR_DUPLICATE))
    dropped.update({n: Outcome.NOT_SAMPLED for n in image_ids if n not in taken})
    return Selection(chosen, dropped, counts, sample, tuple(sorted(duplicates.values())))


def _nothing_fit(dropped: Mapping[int, Outcome]) -> str:
    """Say why no image is fit, those that were screened first, and what can be done about it."""
    counts = Counter(dropped.values())
    far = (Outcome.NOT_IN_LVIS, Outcome.NOT_IN_COCO, Outcome.NO_OBJECT)
    order = sorted(counts, key=lambda outcome: (outcome in far, -counts[outcome]))
    reasons = "; ".join(f"{outcome.value}: {counts[outcome]}" for outcome in order[:4])
    return (
        f"none of {len(dropped)} images is fit for PASCAL-B ({reasons}): loosen the options of "
        "screening; --candidates FILE tells the reason for each candidate"
    )
