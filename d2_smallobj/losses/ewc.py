"""Elastic weight consolidation: hold the weights that task A needs (paper, Eq. 5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2_smallobj.losses import quadratic, stability
from d2_smallobj.losses.ewc_state import read_state
from d2_smallobj.losses.fisher import check_fisher, normalize_min_max_, update_online_
from d2_smallobj.losses.parameters import (
    match_rates,
    match_tensors,
    state_dtype,
    trained_parameters,
)
from d2_smallobj.utils.options import look_up_option

ESTIMATORS = ("online", "empirical")


class Anchored(NamedTuple):
    """How much the penalty holds: numbers of tensors, and of parameters in them."""

    tensors: int
    parameters: int


class ElasticWeightConsolidation:
    """The penalty ``λ Σ F (θ - θ*)²``, its gradient, and the Fisher estimate behind it.

    Life: task A records gradients (``fisher="online"``) or ends with :meth:`set_fisher`
    (``"empirical"``); :meth:`anchor` fixes θ* and F; task B calls :meth:`add_gradient_` after
    every backward, or :meth:`proximal_step_` after every optimiser step. Build it after the model
    is on its device. A checkpointer can store it: see :meth:`state_dict`.

    Memory: F and θ*, two copies of the trained parameters, in float32 or wider, and while a pass
    runs the scratch of a bounded run of tensors. Build it after the model has its memory format.
    Nothing waits for the device, unless it is said.

    Args:
        named_parameters: ``model.named_parameters()``; those that require no gradient are left
            out, wrappers' name parts are dropped (:func:`~.parameters.plain_name`).
        strength: λ >= 0; the paper's is 500, without a factor 1/2.
        fisher: ``"online"`` (the authors' code) or ``"empirical"`` (Kirkpatrick et al.); see
            :mod:`d2_smallobj.losses.fisher`.
        alpha: weight of the new batch in the online estimate, in [0, 1).

    Attributes:
        anchored: whether θ* is set.
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
    ) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be finite and >= 0, got {strength!r}")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha!r}")
        self.strength = strength
        self.estimator = look_up_option("fisher", fisher, ESTIMATORS)
        self.alpha = alpha
        self.anchored = False
        self._trained = trained_parameters(named_parameters)
        self._names = list(self._trained)
        self._parameters = list(self._trained.values())
        # The online estimate starts at ones (the authors' code); the empirical one arrives whole.
        self._fisher: list[Tensor] | None = None
        if self.estimator == "online":
            self._fisher = [torch.ones_like(p, dtype=state_dtype(p)) for p in self._parameters]
        self._anchor: list[Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Plain names of the penalised parameters."""
        return tuple(self._names)

    @property
    def fisher(self) -> dict[str, Tensor]:
        """The present F by parameter name, not copied; empty before :meth:`set_fisher`."""
        return dict(zip(self._names, self._fisher or ()))

    @property
    def anchor_values(self) -> dict[str, Tensor]:
        """θ* by parameter name, not copied; empty before :meth:`anchor`."""
        return dict(zip(self._names, self._anchor or ()))

    def record_gradients(self, scale: float = 1.0) -> Tensor:
        """Move the online estimate on: ``F <- α g² + (1 - α) F``, g the batch gradient.

        Call it after backward, and after DistributedDataParallel's averaging, before the penalty
        is added. A parameter whose ``.grad`` is ``None`` has g = 0. Nothing waits for the device.

        Args:
            scale: factor on the gradients, if a gradient scaler has not been undone yet.

        Returns:
            0-d bool tensor on the device: whether the estimate moved. It stays where a gradient
            is not finite (the step that a gradient scaler leaves out).

        Raises:
            ValueError: if ``scale`` is not positive and finite.
            RuntimeError: if the estimator is not ``"online"``, or θ* is set already.
        """
        _check_scale(scale)
        self._expect("record_gradients", anchored=False, estimator="online")
        gradients = [parameter.grad for parameter in self._parameters]
        return update_online_(self._fisher, gradients, alpha=self.alpha, scale=scale)

    def set_fisher(self, fisher: Mapping[str, Tensor]) -> None:
        """Set the empirical estimate, before :meth:`anchor`.

        Args:
            fisher: parameter name to tensor >= 0 of its shape, one for every penalised parameter;
                from :func:`~.fisher.empirical_fisher`. Kept without a copy where device and dtype
                agree.

        Raises:
            ValueError: if names or shapes do not match, or a value is negative or not finite.
            RuntimeError: if the estimator is not ``"empirical"``, or θ* is set already.
        """
        self._expect("set_fisher", anchored=False, estimator="empirical")
        tensors = match_tensors("fisher", fisher, self._trained, copy=False)
        check_fisher(dict(zip(self._names, tensors)))
        self._fisher = tensors

    def anchor(self) -> Anchored:
        """Fix θ* at the present parameters, and F: the online estimate is min-max normalised.

        Returns:
            How many tensors and parameters the penalty holds.

        Raises:
            ValueError: if F is zero everywhere (nothing was recorded: the penalty would be 0 for
                ever) though λ > 0, or is not finite.
            RuntimeError: if θ* is set already, or the empirical estimate is missing.
        """
        self._expect("anchor", anchored=False)
        fisher = self._known_fisher()
        check_fisher(self.fisher)
        online = self.estimator == "online"
        reach = torch.stack([(f.max() - f.min() if online else f.max()).float() for f in fisher])
        if self.strength > 0 and not reach.any():
            raise ValueError(
                f"fisher: the {self.estimator} estimate would be 0 for all {len(fisher)} tensors, "
                "so the penalty would never act; record gradients in task A, or use the empirical "
                "estimate when task B starts from a checkpoint"
            )
        if online:
            normalize_min_max_(fisher)
        self._anchor = [p.detach().to(f.dtype, copy=True) for p, f in zip(self._parameters, fisher)]
        self.anchored = True
        return Anchored(len(fisher), sum(tensor.numel() for tensor in fisher))

    def penalty(self, *, differentiable: bool = False) -> Tensor:
        """``λ Σ F (θ - θ*)²`` (paper, Eq. 5).

        Args:
            differentiable: build the autograd graph; slower and larger than
                :meth:`add_gradient_`, for tests and other optimisers.

        Returns:
            float32 0-d tensor on the parameters' device.

        Raises:
            RuntimeError: if θ* is not set.
        """
        self._expect("penalty", anchored=True)
        value = quadratic.differentiable_penalty if differentiable else quadratic.penalty
        return self.strength * value(self._parameters, self._anchor, self._fisher)

    def add_gradient_(self, scale: float = 1.0) -> Tensor:
        """Add ``2 λ F (θ - θ*)`` to every ``.grad``, without autograd.

        A missing ``.grad`` is created. Nothing waits for the device.

        Args:
            scale: factor on the gradients that are there, if a gradient scaler has not been
                undone yet; the addition is scaled alike.

        Returns:
            The penalty, unscaled, as a float32 0-d tensor.

        Raises:
            ValueError: if ``scale`` is not positive and finite.
            RuntimeError: if θ* is not set.
        """
        _check_scale(scale)
        self._expect("add_gradient_", anchored=True)
        return self.strength * quadratic.penalty(
            self._parameters,
            self._anchor,
            self._fisher,
            add_gradient=2 * self.strength * scale,
        )

    def proximal_step_(self, learning_rates: Mapping[str, float] | Sequence[float]) -> None:
        """Step to ``(θ + c F θ*) / (1 + c F)`` with ``c = 2 λ lr``, after the optimiser's step.

        The implicit Euler step of the penalty: stable for every λ. It replaces
        :meth:`add_gradient_` and leaves the optimiser's momentum out of the penalty, as AdamW
        leaves weight decay out.

        Args:
            learning_rates: the rate of every penalised parameter, by name or in the order of
                :attr:`names`; see :meth:`learning_rates`.

        Raises:
            ValueError: if a rate is missing, negative or not finite.
            RuntimeError: if θ* is not set.
        """
        self._expect("proximal_step_", anchored=True)
        rates = match_rates(self._names, learning_rates)
        factors = [2 * self.strength * rate for rate in rates]
        quadratic.proximal_step_(self._parameters, self._anchor, self._fisher, factors)

    def groups(self, optimizer: torch.optim.Optimizer) -> list[stability.ParameterGroup]:
        """The optimiser's groups by parameter name; see :func:`.stability.optimizer_groups`."""
        return stability.optimizer_groups(optimizer, zip(self._names, self._parameters))

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """The present rate of every penalised parameter; 0 for those the optimiser lacks."""
        rate_of = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        return {n: rate_of.get(id(p), 0.0) for n, p in zip(self._names, self._parameters)}

    def max_fisher(self) -> dict[str, float]:
        """Largest Fisher value of every parameter tensor, by name. Waits for the device once."""
        largest = torch.stack([tensor.max().float() for tensor in self._known_fisher()])
        return dict(zip(self._names, largest.tolist()))

    def max_stable_strength(
        self, learning_rates: Mapping[str, float] | Sequence[float], momentum: float = 0.0
    ) -> float:
        """The λ that :meth:`add_gradient_` must stay below: ``min (1 + momentum) / (lr max F)``.

        Args:
            learning_rates: as for :meth:`proximal_step_`.
            momentum: SGD's, in [0, 1).

        Returns:
            The limit; infinite if no parameter both moves and is held.

        Raises:
            ValueError: if a rate or the momentum is out of its range.
            RuntimeError: if there is no Fisher estimate.
        """
        largest = self.max_fisher()
        rates = zip(self._names, match_rates(self._names, learning_rates))
        groups = [stability.ParameterGroup(n, rate, (n,), momentum) for n, rate in rates]
        return min(stability.strength_limit(group, largest) for group in groups)

    def check_stability(
        self, groups: Iterable[stability.ParameterGroup], momentum: float | None = None
    ) -> None:
        """Refuse a λ at which :meth:`add_gradient_` would diverge; call it at the task switch.

        Args:
            groups: from :meth:`groups`; with a warm-up still to come, give them its top rate.
            momentum: SGD's; ``None`` takes each group's own.

        Raises:
            ValueError: naming group, rate, largest F and the largest λ allowed.
            RuntimeError: if θ* is not set: the online F is only final then.
        """
        self._expect("check_stability", anchored=True)
        if momentum is not None:
            groups = [dataclasses.replace(g, momentum=momentum) for g in groups]
        stability.check_strength(self.strength, groups, self.max_fisher())

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, in types that ``torch.load(weights_only=True)`` reads.

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
        """Take over a saved state; on an error nothing changes.

        Args:
            state_dict: from :meth:`state_dict`. λ and α stay this object's; see
                :func:`.ewc_state.read_state`.

        Raises:
            ValueError: if the estimator, names or shapes differ, or an entry is missing.
        """
        self._fisher, self._anchor = read_state(
            state_dict,
            self._trained,
            estimator=self.estimator,
            options={"strength": self.strength, "alpha": self.alpha},
        )
        self.anchored = bool(state_dict["anchored"])

    def _known_fisher(self) -> list[Tensor]:
        if self._fisher is None:
            raise RuntimeError("no empirical Fisher yet, got None: call set_fisher(...) first")
        return self._fisher

    def _expect(self, method: str, *, anchored: bool, estimator: str | None = None) -> None:
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
