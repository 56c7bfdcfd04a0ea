"""The paper's published figures as data: Tables 1 to 4 of "Small Objects Matters"."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
from collections.abc import Mapping

from d2_smallobj.statistics.ranking import RankTable, format_rank_table, rank_table
from d2_smallobj.utils.options import look_up_option

PUBLISHED_FIGURES = ("mIoU", "IA-mIoU", "IA-mIoU_S")
TITLES: Mapping[str, str] = {
    "voc": "Table 1: PASCAL VOC 2012 val, cross-entropy",
    "pascal_b": "Table 3: PASCAL-B, cross-entropy",
    "coco": "Table 2: MS COCO, cross-entropy",
    "ablation": "Table 4: ablation on PASCAL VOC 2012 val, full supervision",
}
# Spearman's rho between mIoU and IA-mIoU as the paper prints it (section 5.2).
_PRINTED_RHO: Mapping[str, float] = {"voc": 0.79, "pascal_b": 0.38}


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """One row of a published table.

    Attributes:
        table: one of :data:`TITLES`.
        data_set: what was evaluated on.
        method: name as docs/method.md#published-figures gives it.
        supervision: ``image``, ``image + language``, ``image + saliency``, ``box`` or ``full``.
        loss: ``CE``, ``L_SW`` or ``L_SB``.
        figures: percent by figure, :data:`PUBLISHED_FIGURES`.
    """

    table: str
    data_set: str
    method: str
    supervision: str
    loss: str
    figures: Mapping[str, float]


def load_published(table: str | None = None) -> list[PublishedResult]:
    """Read the published figures from the package's data.

    Args:
        table: ``voc``, ``pascal_b``, ``coco`` or ``ablation``; ``None``: all, in this order.

    Returns:
        The rows, in the paper's order.

    Raises:
        ValueError: if there is no such table.
    """
    if table is not None:
        look_up_option("table", table, TITLES)
    source = importlib.resources.files("d2_smallobj.experiments") / "published_tables.csv"
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return [
        PublishedResult(
            *(row[key] for key in ("table", "data_set", "method", "supervision", "loss")),
            {name: float(row[name]) for name in PUBLISHED_FIGURES},
        )
        for row in rows
        if table in (None, row["table"])
    ]


def published_ranks(table: str) -> RankTable:
    """Rank the methods of a published table; rho and tau between its figures come along.

    Raises:
        ValueError: if there is no such table.
    """
    return rank_table({row.method: row.figures for row in load_published(table)})


def format_published(table: str) -> str:
    """Lay out a published table with ranks and rank correlations as Markdown.

    Raises:
        ValueError: if there is no such table.
    """
    ranks = published_ranks(table)
    methods = {row.method: row.supervision for row in load_published(table)}
    shown = format_rank_table(ranks, extra=("supervision", methods), form=".1f")
    rho = ranks.spearman[0, 1]
    sentence = f"Spearman's rho between {ranks.figures[0]} and {ranks.figures[1]}: {rho:.3f}"
    if table in _PRINTED_RHO:
        sentence += f" (the paper prints {_PRINTED_RHO[table]})"
    return f"## {TITLES[table]}\n\n{shown}\n\n{sentence}.\n"
