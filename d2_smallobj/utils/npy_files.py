"""Read arrays of numbers that ``numpy.save`` wrote, without ever unpickling."""

from __future__ import annotations

import math
import os
import warnings
from typing import BinaryIO

import numpy as np

from d2_smallobj.utils.files import open_file


def read_npy(path: str | os.PathLike[str], *, header_only: bool = False) -> np.ndarray:
    """Read an array of numbers that ``numpy.save`` wrote, without ever unpickling.

    With ``header_only`` it has the shape and dtype of the file's, but no element is read.

    Raises:
        OSError: the file is missing or no regular file.
        ValueError: it is damaged, or not one array of numbers; names the file.
    """
    with open_file(path) as file:
        if file.peek(2).startswith(b"PK"):
            raise ValueError(f"{path}: expected one array, this is an archive of several")
        shape, by_columns, dtype = read_npy_header(file, path)
        if dtype.kind not in "biufc":
            raise ValueError(f"{path}: not a .npy file of plain numbers, but of {dtype}")
        # Compared before anything is allocated: a header may promise any number.
        found = os.fstat(file.fileno()).st_size - file.tell()
        promised = math.prod(shape) * dtype.itemsize
        if found != promised:
            raise ValueError(
                f"{path}: not a complete .npy file of plain numbers ({found} bytes of them, its "
                f"header promises {promised})"
            )
        if header_only:
            return np.broadcast_to(np.zeros((), dtype), shape)
        flat = np.frombuffer(bytearray(file.read()), dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")


def read_npy_header(
    file: BinaryIO, path: str | os.PathLike[str]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy`` file: shape, whether stored by columns, and dtype.

    ValueError for a damaged one names ``path``.
    """
    form = np.lib.format
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = form.read_magic(file) == (1, 0)
            read = form.read_array_header_1_0 if first else form.read_array_header_2_0
            shape, by_columns, dtype = read(file)
        if any(isinstance(length, bool) or length < 0 for length in shape):
            raise ValueError(f"the shape {shape}")
    # The header is Python text: tokenizer, parser and dtype fail each in their own way.
    except Exception as error:
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"{path}: not a complete .npy file of plain numbers ({reason[0]})"
        ) from error
    return shape, by_columns, dtype
