"""Read and write files of weights: damage is noticed, and nothing in a file is run."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from typing import Any

import torch

from d2_smallobj.utils.files import atomic_write, check_regular
from d2_smallobj.utils.safe_pickle import read_array_pickle


def read_weights_file(path: str) -> dict[str, Any]:
    """Read a ``.pth`` or a model-zoo ``.pkl`` without running code.

    Returns:
        A dict with ``model``, name to tensor or numpy array, and whatever else the file holds.

    Raises:
        OSError: if the file cannot be opened or read; names it.
        ValueError: names the file and why it cannot be read.
    """
    if path.endswith(".pkl"):
        loaded = _model_zoo_layout(read_array_pickle(path))
    else:
        loaded = _with_model(load_torch_file(path))
    if not loaded["model"]:
        raise ValueError(f"{path} holds no weights")
    return loaded


def _with_model(loaded: dict[str, Any]) -> dict[str, Any]:
    """Put the weights, which training code stores among other things, under ``model``."""
    for key in ("model", "state_dict", "model_state", "model_state_dict"):
        if isinstance(loaded.get(key), dict):
            return {**{k: v for k, v in loaded.items() if k != key}, "model": loaded[key]}
    return {"model": loaded}


def save_torch_file(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """``torch.save``, atomically; an ``OSError`` names the file."""
    # Serialised in memory first: torch reports a failing disk as an internal assertion.
    buffer = io.BytesIO()
    torch.save(data, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_torch_file(path: str) -> dict[str, Any]:
    """``torch.load`` of tensors and plain containers, on the CPU.

    Raises:
        ValueError: if the file is damaged or could run code; names it and the reason.
        OSError: if it cannot be opened or read; names it.
    """
    check_regular(path)
    try:
        _check_sums(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage surfaces as whatever the damaged instruction does
        # EINVAL: a damaged table of contents that points to before the file's beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise OSError(error.errno, f"could not read {path}: {error.strerror}") from error
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors: it is corrupt, or it holds "
            f"objects whose loading could run code ({reason_of(error)})"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def _check_sums(path: str) -> None:
    """Compare the file with its checksums: torch does not, and would load damaged weights."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"its part {damaged} does not have the checksum it was written with")


def _model_zoo_layout(data: dict[str, Any]) -> dict[str, Any]:
    """Read a ``.pkl`` of detectron2's model zoo, or the blobs of a Caffe2 solver."""
    if isinstance(data.get("model"), dict):
        return data
    blobs = data["blobs"] if isinstance(data.get("blobs"), dict) else data
    model = {n: blob for n, blob in blobs.items() if not str(n).endswith("_momentum")}
    return {"model": model, "matching_heuristics": True}


def reason_of(error: BaseException) -> str:
    """Return the line that says what is wrong, less torch's advice to load it unsafely."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(advice)] or lines
    return telling[0] if telling else type(error).__name__
