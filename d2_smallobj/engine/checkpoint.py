"""A checkpointer that writes atomically and never runs code from a file."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch

from d2_smallobj.utils.files import atomic_write, atomic_write_text
from detectron2.checkpoint import DetectionCheckpointer

# What numpy arrays in a model-zoo pickle are made of; everything else is refused.
_PICKLE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return super().find_class(module, name)


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with three differences.

    Files appear whole or not at all, ``last_checkpoint`` included, so that a kill or a full
    disk leaves the previous checkpoint in force. Loading runs no code: ``weights_only=True``,
    and ``.pkl`` files may hold numpy arrays and plain containers only. A file that cannot be
    read is one error that names it.
    """

    _match_by_suffix = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and ``kwargs`` to ``<save_dir>/<name>.pth``.

        Raises:
            OSError: if the file cannot be written; names it. Earlier checkpoints stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        save_torch_file(path, data)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` continues from."""
        atomic_write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; see detectron2, also for ``?matching_heuristics=True`` at its end.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is corrupt or would run code; names the file.
        """
        url = urlparse(path)
        local = url._replace(query="").geturl()
        if path and "://" not in path and not os.path.isfile(local):
            raise FileNotFoundError(
                f"checkpoint {local} does not exist (MODEL.WEIGHTS or --resume)"
            )
        self._match_by_suffix = parse_qs(url.query).get("matching_heuristics") == ["True"]
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            loaded = _model_zoo_layout(load_array_pickle(filename))
        else:
            loaded = load_torch_file(filename)
            loaded = loaded if "model" in loaded else {"model": loaded}
        if not loaded["model"]:
            raise ValueError(f"{filename} holds no weights")
        return {**loaded, "matching_heuristics": True} if self._match_by_suffix else loaded


def save_torch_file(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """``torch.save``, atomically.

    Raises:
        OSError: if the file cannot be written; names it.
    """
    # Serialised in memory first: torch reports a failing disk as an internal assertion.
    buffer = io.BytesIO()
    torch.save(data, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_torch_file(path: str) -> dict[str, Any]:
    """``torch.load`` of tensors and plain containers, on the CPU.

    Raises:
        ValueError: names the file and why it cannot be read.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage surfaces as whatever the damaged instruction does
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors: it is corrupt, or it holds "
            f"objects whose loading could run code ({_reason(error)})"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def load_array_pickle(path: str) -> dict[str, Any]:
    """Read a model-zoo ``.pkl`` of numpy arrays without running code.

    Raises:
        ValueError: names the file and why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            loaded = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays: {_reason(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dict of arrays")
    return loaded


def _model_zoo_layout(data: dict[str, Any]) -> dict[str, Any]:
    """What detectron2 makes of a ``.pkl``: its own layout, or Caffe2 blobs to be renamed."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    model = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _reason(error: BaseException) -> str:
    """The line of an error that says what is wrong, less torch's advice to load it unsafely."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(advice)] or lines
    return telling[0] if telling else type(error).__name__
