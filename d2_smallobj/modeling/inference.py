"""Prediction with several scales, mirrored copies and a CRF, around any segmentation model.

Shapes: K classes, H x W the input image, H' x W' the wanted output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_smallobj.config_rules import AVERAGES
from d2_smallobj.modeling.segmentor import resized
from d2_smallobj.postprocessing import CrfOptions, DenseCrf
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode


class MultiViewInference(nn.Module):
    """Average a model's predictions over scales and mirrored copies, and refine them.

    Training passes through unchanged.

    Args:
        model: any that answers dataset dicts with ``{"sem_seg": (K, H', W') logits}``.
        scales: factors on the size of the input, each > 0.
        flip: predict every scale mirrored too.
        average: ``"softmax"``: the mean of the views' probabilities; ``"logits"``: the softmax of
            their mean logits.
        refine: from probabilities float32 (K, H', W') and the image uint8 (H', W', 3) to refined
            probabilities; None: nothing is refined.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        average: str = "softmax",
        refine: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.views = list(itertools.product(scales, (False, True)[: 1 + flip]))
        self.average = look_up_option("average", average, AVERAGES)
        self.refine = refine
        # Evaluation restores the mode that it finds, on the whole tree.
        self.training = model.training

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Predict a batch.

        Args:
            batched_inputs: dataset dicts with ``image`` (3, H, W) in 0..255 and optionally
                ``height`` and ``width`` of the output, H' and W'.

        Returns:
            The model's answers to the first view, but ``sem_seg`` is probabilities, float32
            (K, H', W').
        """
        if self.training:
            return self.model(batched_inputs)
        sized = [
            {**dict(zip(("height", "width"), x["image"].shape[-2:])), **x} for x in batched_inputs
        ]
        outputs: list[dict[str, Any]] = []
        totals: list[torch.Tensor] = []
        for scale, mirrored in self.views:
            answers = self.model([_view(x, scale, mirrored) for x in sized])
            scores = [self._scores(answer["sem_seg"], mirrored) for answer in answers]
            outputs = outputs or answers
            totals = [a.add_(b) for a, b in zip(totals, scores)] if totals else scores
        return [
            {**output, "sem_seg": self._finish(total / len(self.views), x)}
            for output, total, x in zip(outputs, totals, sized)
        ]

    def _scores(self, logits: torch.Tensor, mirrored: bool) -> torch.Tensor:
        """Scores of one view to be averaged, turned back if it was mirrored."""
        scores = logits.float()
        scores = scores.softmax(dim=0) if self.average == "softmax" else scores.clone()
        return scores.flip(-1) if mirrored else scores

    def _finish(self, mean: torch.Tensor, x: dict[str, Any]) -> torch.Tensor:
        probabilities = mean if self.average == "softmax" else mean.softmax(dim=0)
        if self.refine is None:
            return probabilities
        image = _resized(x["image"], (x["height"], x["width"])).round().clamp(0, 255)
        pixels = np.ascontiguousarray(image.byte().cpu().numpy().transpose(1, 2, 0))
        refined = self.refine(probabilities.cpu().numpy(), pixels)
        return torch.from_numpy(refined).to(mean.device)


def build_inference(cfg: CfgNode, model: nn.Module, *, always: bool = False) -> nn.Module:
    """Wrap a semantic model as ``SMALLOBJ.TEST`` asks; the result answers with probabilities.

    When the keys ask for nothing, return the model itself, unless ``always`` is true.
    """
    node = cfg.SMALLOBJ.TEST
    plain = list(node.SCALES) == [1] and not node.FLIP and not node.CRF.ENABLED
    if plain and not always:
        return model
    return MultiViewInference(
        model,
        scales=node.SCALES,
        flip=node.FLIP,
        average=node.AVERAGE,
        refine=build_crf(cfg) if node.CRF.ENABLED else None,
    )


def build_crf(cfg: CfgNode) -> DenseCrf:
    """Build the CRF of ``SMALLOBJ.TEST.CRF``, enabled or not."""
    node = cfg.SMALLOBJ.TEST.CRF
    return DenseCrf(CrfOptions(**{k.lower(): v for k, v in node.items() if k != "ENABLED"}))


def _view(x: dict[str, Any], scale: float, mirrored: bool) -> dict[str, Any]:
    """A dataset dict of the image at another scale, mirrored or not."""
    image = x["image"]
    image = _resized(image, [max(1, round(side * scale)) for side in image.shape[-2:]])
    return {**x, "image": image.flip(-1) if mirrored else image}


def _resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A (3, H, W) image at another size; the same tensor when it has that size."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return resized(image[None].float(), size)[0]
