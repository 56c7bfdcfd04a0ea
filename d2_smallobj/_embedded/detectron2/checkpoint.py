"""The checkpointer, and the names of weights from Caffe2."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer: writes on the main process only, and loads without running code.

    It reads ``.pth`` files. For ``.pkl`` files, and ``?matching_heuristics=True`` at the end of a
    path, a subclass overrides ``_load_file``, as :class:`d2_smallobj.engine.SafeCheckpointer`
    does; the renaming is done here.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        saves = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=saves, **checkpointables)
        self.path_manager = PathManager

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or URL, of which only what stands before a ``?`` names the file."""
        return super().load(urlparse(path)._replace(query="").geturl(), *args, **kwargs)

    def _load_file(self, f: str) -> dict[str, Any]:
        if f.endswith(".pkl"):
            raise ValueError(f"{f}: load .pkl files with d2_smallobj.engine.SafeCheckpointer")
        loaded = torch.load(f, map_location="cpu", weights_only=True)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics"):
            weights = checkpoint["model"]
            self._convert_ndarray_to_tensor(weights)
            if checkpoint.get("__author__") == "Caffe2":
                weights = {rename_caffe2(name): value for name, value in weights.items()}
            checkpoint["model"] = match_names(self.model.state_dict(), weights)
        return super()._load_model(checkpoint)


_CAFFE2_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pred\.([bw])$", r"linear.\1"),
        (r"\.b$", ".bias"),
        (r"\.w$", ".weight"),
        (r"(bn|gn)\.(s|gamma)$", "norm.weight"),
        (r"(bn|gn)\.(bias|beta)$", "norm.bias"),
        (r"bn\.(rm|running\.mean)$", "norm.running_mean"),
        (r"bn\.(riv|running\.var)$", "norm.running_var"),
        (r"^res\.conv1\.norm\.", "conv1.norm."),
        (r"^conv1\.", "stem.conv1."),
        (r"\.branch1\.", ".shortcut."),
        (r"\.branch2a\.", ".conv1."),
        (r"\.branch2b\.", ".conv2."),
        (r"\.branch2c\.", ".conv3."),
    )
]


def rename_caffe2(name: str) -> str:
    """Return the detectron2 name of a ResNet's blob, e.g. ``res2.0.conv1.norm.weight``."""
    name = name.replace("_", ".")
    for pattern, replacement in _CAFFE2_RULES:
        name = pattern.sub(replacement, name)
    return name


def match_names(
    model_state: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename weights to the model's keys.

    A key of the model takes the weight with the longest name that is the key, or the key's end
    after a dot; weights that no key takes keep their names, those of another shape are not used.

    Raises:
        ValueError: if two keys would take one weight.
    """
    taken: dict[str, str] = {}
    renamed: dict[str, torch.Tensor] = {}
    for key, value in model_state.items():
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        name = next((end for end in ends if end in weights), None)
        if name is None:
            continue
        if weights[name].shape != value.shape:
            shapes = tuple(weights[name].shape), tuple(value.shape)
            logger.warning("%s: %s has shape %s, the model %s; not loaded", key, name, *shapes)
            continue
        if name in taken:
            raise ValueError(f"{name!r} in the checkpoint matches {taken[name]!r} and {key!r}")
        taken[name] = key
        renamed[key] = weights[name]
    logger.info("%d of %d weights matched with the model", len(taken), len(weights))
    return {**renamed, **{name: value for name, value in weights.items() if name not in taken}}
