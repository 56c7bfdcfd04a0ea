"""The weight consolidation's checkpoint entry, checked before anything of it is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from d2_smallobj.losses.parameters import match_tensors

_logger = logging.getLogger(__name__)


def read_state(
    state: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    *,
    estimator: str,
    options: Mapping[str, float],
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Take the tensors out of a saved state.

    Args:
        state: ``fisher`` (name to tensor), ``anchored``, ``estimator``, and once anchored
            ``anchor`` (name to tensor).
        parameters: plain name to parameter of the model that resumes.
        estimator: the Fisher estimator of the run that resumes.
        options: its numbers. They win over the saved ones, so that a run can resume with another
            strength; a difference is logged.

    Returns:
        Fisher (``None`` for an empirical estimate that is still to come) and anchor (``None``
        before the switch), copies in the parameters' order and on their devices.

    Raises:
        ValueError: if an entry is missing, or estimator, names or shapes differ.
    """
    required = ["anchored", "estimator", "fisher"] + ["anchor"] * bool(state.get("anchored"))
    missing = [key for key in required if key not in state]
    if missing:
        raise ValueError(f"state_dict must hold {required}, but lacks {missing}")
    if state["estimator"] != estimator:
        raise ValueError(
            f"state_dict: its Fisher estimator is {state['estimator']!r}, this run's is "
            f"{estimator!r}; resume with the estimator that the run was started with"
        )
    fisher = anchor = None
    # An empirical estimate comes at the switch: before that, no Fisher is right.
    if state["fisher"] or state["anchored"] or estimator != "empirical":
        fisher = match_tensors("state_dict fisher", state["fisher"], parameters)
    if state["anchored"]:
        anchor = match_tensors("state_dict anchor", state["anchor"], parameters)
    for key, value in options.items():
        if state.get(key, value) != value:
            _logger.warning(
                "EWC %s is %g in the checkpoint and %g in this run, which is what is used",
                key,
                state[key],
                value,
            )
    return fisher, anchor
