"""What became of a file's annotations, as text and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence

from d2_smallobj.annotations.accounting import FATES, Accounting
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.tables import markdown_table


def format_accounting(result: Accounting) -> str:
    """A table with a row for each category that has annotations, and a row for all.

    Args:
        result: of :func:`d2_smallobj.annotations.accounting.account`.
    """
    total = result.total
    fates = [fate for fate in FATES if total[fate]]
    rows = [
        [f"{result.names[category]} ({category})", *_cells(counts, fates)]
        for category, counts in result.counts.items()
    ]
    rows.append(["all", *_cells(total, fates)])
    empty = len(result.names) - len(result.counts)
    text = (
        f"{markdown_table(['category', *fates, 'annotations'], rows)}\n\n{result.num_images:,} "
        f"images, {result.num_unannotated:,} without annotations; {empty:,} of "
        f"{len(result.names):,} categories have none."
    )
    if result.malformed:
        text += f"\n\n{itemized('malformed mask(s)', result.malformed)}"
    return text


def write_accounting(path: str | os.PathLike[str], result: Accounting) -> None:
    """Write the table as CSV, all fates and all categories of the file.

    Args:
        path: the file to write, atomically.
        result: of :func:`d2_smallobj.annotations.accounting.account`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category_id", "category", *(fate.replace(" ", "_") for fate in FATES)])
    for category, name in result.names.items():
        counts = result.counts.get(category, {})
        writer.writerow([category, name, *(counts.get(fate, 0) for fate in FATES)])
    atomic_write_text(path, text.getvalue())


def _cells(counts: Counter[str], fates: Sequence[str]) -> list[str]:
    """The counts of some fates, and of all."""
    return [*(str(counts[fate]) for fate in fates), str(sum(counts.values()))]
