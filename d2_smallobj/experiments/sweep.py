"""Methods × losses × seeds: one ablation for every training set, and the paper's tables of all."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from d2_smallobj.data import register_all
from d2_smallobj.engine.setup import build_config
from d2_smallobj.engine.tables import HEADLINE
from d2_smallobj.experiments.ablation import Ablation, write_tables
from d2_smallobj.experiments.gain_plot import draw_gains
from d2_smallobj.experiments.paper_tables import RunResult, measure_gains, write_paper_tables
from d2_smallobj.experiments.variants import BASELINE
from d2_smallobj.utils.options import look_up_option
from detectron2.data import DatasetCatalog

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w.-]*\w[\w.-]*")


def split_by_method(ablation: Ablation, methods: Sequence[str]) -> list[Ablation]:
    """The same ablation on the training set of every method, each in a folder of its own.

    Args:
        ablation: on the config's training set.
        methods: ``NAME=DATA_SET``, or ``NAME`` alone: a registered data set, or what takes the
            place of the last part of the config's (``amn`` where the config has
            ``voc_2012_trainaug_irn``).

    Raises:
        ValueError: for an unknown data set, or a name that is given twice or is no folder's name.
    """
    register_all()
    split = []
    for argument in methods:
        name, _, data_set = argument.partition("=")
        if not _NAME.fullmatch(name) or name in [other.method for other in split]:
            raise ValueError(
                f"--methods takes different names of letters, digits, '_', '-' and '.', got "
                f"{name!r} in {list(methods)}"
            )
        data_set = data_set or _training_set(ablation, name)
        look_up_option("--methods", data_set, DatasetCatalog.list())
        split.append(
            dataclasses.replace(
                ablation,
                method=name,
                output_dir=ablation.output_dir / name,
                options=(*ablation.options, "DATASETS.TRAIN", repr((data_set,))),
            )
        )
    return split


def _training_set(ablation: Ablation, name: str) -> str:
    """The data set that a method's bare name stands for."""
    if name in DatasetCatalog.list():
        return name
    configured = build_config(ablation.config_file, ablation.options).DATASETS.TRAIN[0]
    return f"{configured.rpartition('_')[0]}_{name}"


def write_all_tables(ablations: Sequence[Ablation], folder: Path) -> str:
    """Write everything that the complete runs tell.

    ``ablation.csv`` and ``ablation.md`` with all figures, ``paper_tables.md`` with its CSVs in the
    layout of the paper, and ``fig8.png`` where two variants can be compared.

    Args:
        ablations: one, or several from :func:`split_by_method`.
        folder: where to write.

    Returns:
        The content of ``ablation.md``.
    """
    table = write_tables(ablations, folder)
    results = [result for ablation in ablations for result in _results(ablation)]
    write_paper_tables(folder, results, baseline=BASELINE)
    gains = measure_gains(results, baseline=BASELINE)
    if gains:
        try:
            draw_gains(folder / "fig8.png", gains, baseline=BASELINE)
        except ImportError as error:
            logger.warning(f"fig8.png is left out: {error}")
    return table


def _results(ablation: Ablation) -> list[RunResult]:
    rows = list(ablation.rows())
    method = ablation.method
    if rows and not method:
        method = build_config(ablation.config_file, ablation.options).DATASETS.TRAIN[0]
    return [
        RunResult(
            method,
            str(row["variant"]),
            int(row["seed"]),
            str(row["data set"]),
            {key: float(row[key]) for key in HEADLINE},
        )
        for row in rows
    ]
