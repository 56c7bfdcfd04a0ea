"""Elastic weight consolidation: hold the weights that task A needs (paper, Eq. 5)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2_smallobj.losses import ewc_penalty
from d2_smallobj.losses.ewc_penalty import match_tensors, state_dtype, trained_parameters
from d2_smallobj.losses.fisher import (
    FISHER_ESTIMATORS,
    check_fisher,
    normalize_min_max_,
    update_online_,
)
from d2_smallobj.utils.messages import look_up_option

logger = logging.getLogger(__name__)


class ElasticWeightConsolidation:
    """The penalty ``λ Σ F (θ - θ*)²``, its gradient, and the estimate of F.

    During task A call :meth:`record_gradients` after every backward (``fisher="online"``), or end
    it with :meth:`set_fisher` (``"empirical"``). :meth:`anchor` then fixes θ* and F. During task B
    call :meth:`add_gradient_` after every backward, or :meth:`proximal_step_` after every
    optimiser step. Build it when the model is on its device and in its memory format.

    It holds two copies of the trained parameters (F and θ*), in float32 or wider. No method waits
    for the device unless its docstring says so.

    Args:
        named_parameters: ``model.named_parameters()``; those that require no gradient are left
            out, and the prefixes of wrappers are dropped (:func:`~.ewc_penalty.plain_name`).
        strength: λ >= 0; the paper's is 500, without a factor 1/2.
        fisher: ``"online"`` (the authors' code) or ``"empirical"`` (Kirkpatrick et al.); see
            :mod:`d2_smallobj.losses.fisher`.
        alpha: weight of the new batch in the online estimate, in [0, 1).
        compiled: take the penalty, its gradient and the online estimate in one pass over the
            parameters, made by ``torch.compile``. Equal up to rounding; the proximal step stays.

    Attributes:
        anchored: whether θ* is set.
        names: plain names of the penalised parameters.
        strength: λ; may be changed at any time.

    Raises:
        ValueError: if an option is out of its range, or no parameter requires a gradient.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        strength: float = 500.0,
        fisher: str = "online",
        alpha: float = 0.9,
        compiled: bool = False,
    ) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be finite and >= 0, got {strength!r}")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha!r}")
        self.strength = strength
        self.estimator = look_up_option("fisher", fisher, FISHER_ESTIMATORS)
        self.alpha = alpha
        self.compiled = compiled
        self.anchored = False
        self._trained = trained_parameters(named_parameters)
        self.names = tuple(self._trained)
        self._parameters: list[Tensor] = list(self._trained.values())
        # The online estimate starts at ones (the authors' code); the empirical one arrives whole.
        self._fisher: list[Tensor] | None = None
        if self.estimator == "online":
            self._fisher = [torch.ones_like(p, dtype=state_dtype(p)) for p in self._parameters]
        self._anchor: list[Tensor] | None = None

    @property
    def fisher(self) -> dict[str, Tensor]:
        """The present F by parameter name, not copied; empty before :meth:`set_fisher`."""
        return dict(zip(self.names, self._fisher or ()))

    @property
    def anchor_values(self) -> dict[str, Tensor]:
        """θ* by parameter name, not copied; empty before :meth:`anchor`."""
        return dict(zip(self.names, self._anchor or ()))

    def record_gradients(self, scale: float = 1.0) -> Tensor:
        """Update the online estimate: ``F <- α g² + (1 - α) F``, g the gradient of the batch.

        Call it after DistributedDataParallel's averaging and before the penalty is added. A
        parameter whose ``.grad`` is ``None`` has g = 0.

        Args:
            scale: factor that a gradient scaler has put on the gradients.

        Returns:
            0-d bool tensor on the device: true if F was updated; false if a gradient is not
            finite, as in a step that a gradient scaler skips.

        Raises:
            ValueError: if ``scale`` is not positive and finite.
            RuntimeError: if the estimator is not ``"online"``, or θ* is set already.
        """
        _check_scale(scale)
        self._check_call("record_gradients", anchored=False, estimator="online")
        gradients = [parameter.grad for parameter in self._parameters]
        options = {"alpha": self.alpha, "scale": scale, "compiled": self.compiled}
        return update_online_(self._known_fisher(), gradients, **options)

    def set_fisher(self, fisher: Mapping[str, Tensor]) -> None:
        """Set the empirical estimate, before :meth:`anchor`.

        Args:
            fisher: a tensor >= 0 for every penalised parameter, of its shape, by name; from
                :func:`~.fisher.empirical_fisher`. Copied only where device or dtype differ.

        Raises:
            ValueError: if names or shapes do not match, or a value is negative or not finite.
            RuntimeError: if the estimator is not ``"empirical"``, or θ* is set already.
        """
        self._check_call("set_fisher", anchored=False, estimator="empirical")
        tensors = match_tensors("fisher", fisher, self._trained, copy=False)
        check_fisher(dict(zip(self.names, tensors)))
        self._fisher = tensors

    def anchor(self) -> tuple[int, int]:
        """Fix θ* at the present parameters, and F; min-max normalise the online estimate.

        Returns:
            How many tensors the penalty holds, and how many parameters are in them.

        Raises:
            ValueError: if F is not finite, or is zero everywhere although λ > 0.
            RuntimeError: if θ* is set already, or the empirical estimate is missing.
        """
        self._check_call("anchor", anchored=False)
        fisher = self._known_fisher()
        check_fisher(self.fisher)
        online = self.estimator == "online"
        largest = torch.stack([(f.max() - f.min() if online else f.max()).float() for f in fisher])
        if self.strength > 0 and not largest.any():
            raise ValueError(
                f"fisher: the {self.estimator} estimate would be 0 for all {len(fisher)} tensors, "
                "so the penalty would never act. Are all labels the ignore label (255)? Otherwise "
                "record gradients in task A, or use the empirical estimate when task B starts from "
                "a checkpoint"
            )
        if online:
            normalize_min_max_(fisher)
        self._anchor = [p.detach().to(f.dtype, copy=True) for p, f in zip(self._parameters, fisher)]
        self.anchored = True
        return len(fisher), sum(tensor.numel() for tensor in fisher)

    def penalty(self) -> Tensor:
        """Return ``λ Σ F (θ - θ*)²`` (paper, Eq. 5), a float32 0-d tensor without a graph.

        Raises:
            RuntimeError: if θ* is not set.
        """
        self._check_call("penalty", anchored=True)
        return self.strength * ewc_penalty.penalty(*self._tensors(), compiled=self.compiled)

    def add_gradient_(self, scale: float = 1.0) -> Tensor:
        """Add ``2 λ F (θ - θ*)`` to every ``.grad``, without autograd.

        A missing ``.grad`` is created.

        Args:
            scale: factor that a gradient scaler has put on the gradients; the addition gets it too.

        Returns:
            The penalty, unscaled, as a float32 0-d tensor.

        Raises:
            ValueError: if ``scale`` is not positive and finite.
            RuntimeError: if θ* is not set.
        """
        _check_scale(scale)
        self._check_call("add_gradient_", anchored=True)
        return self.strength * ewc_penalty.penalty(
            *self._tensors(), add_gradient=2 * self.strength * scale, compiled=self.compiled
        )

    def proximal_step_(self, learning_rates: Mapping[str, float]) -> None:
        """Step to ``(θ + c F θ*) / (1 + c F)`` with ``c = 2 λ lr``, after the optimiser's step.

        It is the implicit Euler step of the penalty, stable for every λ. It replaces
        :meth:`add_gradient_` and keeps the penalty out of the optimiser's momentum, as AdamW
        keeps weight decay out.

        Args:
            learning_rates: the rate of every penalised parameter, by name; see
                :meth:`learning_rates`.

        Raises:
            ValueError: if a rate is missing, negative or not finite.
            RuntimeError: if θ* is not set.
        """
        self._check_call("proximal_step_", anchored=True)
        rates = ewc_penalty.match_rates(self.names, learning_rates)
        factors = [2 * self.strength * rate for rate in rates]
        ewc_penalty.proximal_step_(*self._tensors(), factors)

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """The present rate of every penalised parameter; 0 for those the optimiser lacks."""
        rate_of = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        return {name: rate_of.get(id(p), 0.0) for name, p in self._trained.items()}

    def max_fisher(self) -> dict[str, float]:
        """Largest Fisher value of every parameter tensor, by name. Waits for the device once."""
        largest = torch.stack([tensor.max().float() for tensor in self._known_fisher()])
        return dict(zip(self.names, largest.tolist()))

    def check_stability(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a λ at which :meth:`add_gradient_` would diverge; call it at the task switch.

        Args:
            optimizer: an SGD that moves all penalised parameters; with a warm-up still to come,
                give its groups the top rate.

        Raises:
            ValueError: naming group, rate, largest F and the largest λ allowed; or the penalised
                parameters that the optimiser lacks.
            TypeError: if it is another optimiser, whose bound is not known.
            RuntimeError: if θ* is not set: the online F is only final then.
        """
        self._check_call("check_stability", anchored=True)
        ewc_penalty.check_strength(self.strength, optimizer, self._trained, self.max_fisher())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in types that ``torch.load(weights_only=True)`` reads.

        Returns:
            ``fisher`` (name to tensor; empty before :meth:`set_fisher`), ``anchor`` (name to
            tensor, only once set), ``anchored``, ``estimator``, ``strength``, ``alpha``. Tensors
            are not copied.
        """
        state: dict[str, Any] = {
            "fisher": self.fisher,
            "anchored": self.anchored,
            "estimator": self.estimator,
            "strength": float(self.strength),
            "alpha": float(self.alpha),
        }
        if self._anchor is not None:
            state["anchor"] = self.anchor_values
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load copies of a saved state's tensors; on an error nothing changes.

        Args:
            state_dict: from :meth:`state_dict`. λ and α stay this object's, so that a run can
                resume with another strength; a difference is logged.

        Raises:
            ValueError: if the estimator, names or shapes differ, or an entry is missing.
        """
        required = ["anchored", "estimator", "fisher"]
        if state_dict.get("anchored"):
            required.append("anchor")
        missing = [key for key in required if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict must hold {required}, but lacks {missing}")
        if state_dict["estimator"] != self.estimator:
            raise ValueError(
                f"state_dict: its Fisher estimator is {state_dict['estimator']!r}, this run's is "
                f"{self.estimator!r}; resume with the estimator that the run was started with"
            )
        fisher = anchor = None
        # An empirical estimate comes at the switch: before that, no Fisher is right.
        if state_dict["fisher"] or state_dict["anchored"] or self.estimator != "empirical":
            fisher = match_tensors("state_dict fisher", state_dict["fisher"], self._trained)
        if state_dict["anchored"]:
            anchor = match_tensors("state_dict anchor", state_dict["anchor"], self._trained)
        for key, value in (("strength", self.strength), ("alpha", self.alpha)):
            if state_dict.get(key, value) != value:
                logger.warning(
                    f"EWC {key} is {state_dict[key]:g} in the checkpoint; this run uses {value:g}"
                )
        self._fisher, self._anchor = fisher, anchor
        self.anchored = bool(state_dict["anchored"])

    def _tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """θ, θ* and F, once θ* is set."""
        assert self._anchor is not None
        return self._parameters, self._anchor, self._known_fisher()

    def _known_fisher(self) -> list[Tensor]:
        if self._fisher is None:
            raise RuntimeError("no empirical Fisher yet, got None: call set_fisher(...) first")
        return self._fisher

    def _check_call(self, method: str, *, anchored: bool, estimator: str | None = None) -> None:
        """Refuse a method called at the wrong time, or on the wrong kind of estimate."""
        if estimator not in (None, self.estimator):
            raise RuntimeError(
                f"{method} needs fisher={estimator!r}, this object has fisher={self.estimator!r}"
            )
        if self.anchored != anchored:
            when = "after" if anchored else "before"
            raise RuntimeError(f"{method} must be called {when} anchor(), anchored={self.anchored}")


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and > 0, got {scale!r}")
