"""The checkpointer."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlparse

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer: writes on the main process only, and loads without running code.

    It reads ``.pth`` files. For others, and for files with other names, a subclass overrides
    ``_load_file`` and ``_load_model``, as :class:`d2_smallobj.engine.SafeCheckpointer` does.
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
