"""Read pickles without running what they may hold.

:func:`read_npy_dict` reads a dict in a ``.npy`` file, :func:`read_array_pickle` a model-zoo file.
The few constructors that numpy arrays and torch tensors are made of are replaced by stand-ins of
this module, so that a file calls no function of numpy, torch or any other package. torch is not
needed.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from d2_smallobj.utils.files import read_bytes
from d2_smallobj.utils.npy_files import read_npy_header

_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TORCH_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_NUMBERS = re.compile(r"[biuf][1248]")
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def read_npy_dict(path: str | os.PathLike[str]) -> dict[str | int, Any]:
    """Read a dict that ``numpy.save`` wrote.

    Args:
        path: the ``.npy`` file.

    Returns:
        The dict; numpy arrays, torch tensors and lists of numbers as numpy arrays, numbers as
        numbers. Keys are texts or integers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, holds no dict, or holds anything but texts, numbers,
            arrays and tensors; nothing of it has been run. Names the file.
    """
    content = io.BytesIO(read_bytes(path))
    shape, _, dtype = read_npy_header(content, path)
    if not dtype.hasobject or shape != ():
        raise ValueError(
            f"{path}: expected a dict that numpy.save wrote, got an array of shape {shape} of "
            f"{dtype}"
        )
    try:
        loaded = _load(content.read())
        if not isinstance(loaded, _Array) or not isinstance(loaded.value, list):
            raise ValueError("it does not hold a numpy array of objects")
        (value,) = loaded.value
        if not isinstance(value, dict):
            raise ValueError(f"expected a dict, got {type(value).__name__}")
        return {_key(key): _plain(entry) for key, entry in value.items()}
    # A pickle can fail in every way that there is.
    except Exception as error:
        raise ValueError(f"{path}: not a file of maps that can be read safely: {error}") from error


def read_array_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a model-zoo ``.pkl`` of numpy arrays.

    Raises:
        ValueError: the file is damaged or could run code; names it and the reason.
        OSError: the file cannot be opened or read; names it.
    """
    try:
        loaded = _arrays(_load(read_bytes(path), "latin1"))  # the encoding of Python 2's bytes
    except OSError as error:
        raise OSError(error.errno, f"could not read {path}: {error.strerror}") from error
    # A damaged pickle fails in every way that there is.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a pickle of arrays: {reason}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dict of arrays")
    return loaded


def _arrays(value: Any) -> Any:
    """A value with arrays, which can be written to, instead of stand-ins."""
    if isinstance(value, _Array):
        return _arrays(value.value) if isinstance(value.value, list) else np.array(value.value)
    if isinstance(value, dict):
        return {key: _arrays(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_arrays, value))
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _key(key: Any) -> str | int:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise ValueError(f"keys must be texts or integers, got {key!r:.60}")
    return key


def _plain(entry: Any) -> Any:
    """An entry of the dict without stand-ins."""
    if isinstance(entry, _Array):
        if not isinstance(entry.value, np.ndarray):
            raise ValueError("an array of objects within the dict")
        return entry.value
    if isinstance(entry, (list, tuple)):
        if not all(isinstance(number, (int, float)) for number in entry):
            raise ValueError("a list of something else than numbers within the dict")
        return np.array(entry)
    if entry is None or isinstance(entry, (str, int, float)):
        return entry
    raise ValueError(f"a {type(entry).__name__} within the dict")


def _load(data: bytes, encoding: str = "ASCII") -> Any:
    """Unpickle with the stand-ins."""
    # A few bytes can ask for a memo of billions of entries; it is filled one by one.
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _MEMO and (argument or 0) > number:
            raise ValueError("the pickle is malformed")
    return _Unpickler(io.BytesIO(data), encoding=encoding).load()


class _Array:
    """Stand-in for an array: its state is checked before numpy sees it.

    Attributes:
        value: the array; a list for an array of objects; ``None`` until the state is known.
    """

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | list[Any] | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if self.value is not None or not isinstance(dtype, _Dtype):
            raise ValueError("an array with a malformed state")
        if dtype.text.startswith("O"):
            if not isinstance(content, list):
                raise ValueError("an array of objects with a malformed state")
            self.value = content
            return
        if isinstance(content, str):  # of Python 2, decoded as latin1
            content = content.encode("latin1")
        flat = np.frombuffer(content, dtype.resolve())
        if math.prod(shape) != len(flat):
            raise ValueError(f"an array of shape {shape} with {len(flat)} elements")
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


class _Dtype:
    """Stand-in for a dtype: numbers only, and objects for the dict itself."""

    __slots__ = ("order", "text")

    def __init__(self, text: str) -> None:
        if not (_NUMBERS.fullmatch(text) or text in ("O", "O8", "O4")):
            raise ValueError(f"an array of {text!r}")
        self.text = text
        self.order: Literal["<", ">", "|", "="] = "|"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("an array of records")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        """The dtype of numbers."""
        return np.dtype(self.text).newbyteorder(self.order)


class _Storage:
    """Stand-in for a torch storage, one-dimensional."""

    __slots__ = ("content",)

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a storage with a state")


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows nothing but the constructors of arrays and tensors.

    They are methods, so that a file cannot change them for the next one.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a constructor; everything else is refused."""
        known: dict[str, Callable[..., Any] | str] = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
            "collections.OrderedDict": self._ordered_dict,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
            "torch.storage._load_from_bytes": self._load_storage,
        }
        # numpy 2 writes _core.
        found = known.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if found is None:
            raise pickle.UnpicklingError(
                f"it wants to call {module}.{name}, which no array needs (refused, not run)"
            )
        return found

    def _reconstruct(self, kind: Any, *_: Any) -> _Array:
        if kind != "ndarray":
            raise ValueError("an array of an unknown kind")
        return _Array()

    def _scalar(self, dtype: _Dtype, content: bytes | str) -> int | float:
        if isinstance(content, str):
            content = content.encode("latin1")
        (number,) = np.frombuffer(content, dtype.resolve()).tolist()
        return number

    def _dtype(self, text: str, *_: Any) -> _Dtype:
        return _Dtype(text)

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes, as old pickles hold them."""
        if encoding != "latin1":
            raise ValueError("bytes in an unknown encoding")
        return text.encode("latin1")

    def _ordered_dict(self) -> dict[Any, Any]:
        return {}

    def _load_storage(self, content: bytes) -> _Storage:
        return _TorchUnpickler.read_storage(content)

    def _rebuild_tensor(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any
    ) -> _Array:
        """A strided view of a storage, as a copy."""
        size, stride = tuple(size), tuple(stride)
        if min((offset, *size, *stride)) < 0 or len(size) != len(stride):
            raise ValueError("a tensor with a malformed shape")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if math.prod(size) and last >= len(storage.content):
            raise ValueError("a tensor that reaches beyond its storage")
        flat = storage.content[offset:]
        steps = tuple(step * flat.itemsize for step in stride)
        view = np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)
        return _Array(view.copy() if math.prod(size) else np.zeros(size, flat.dtype))


class _TorchUnpickler(pickle.Unpickler):
    """Reads the storages that torch writes into the pickle of a tensor."""

    def find_class(self, module: str, name: str) -> str:
        """The dtype of a storage type; everything else is refused."""
        if module != "torch" or name not in _TORCH_STORAGES:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name} (refused, not run)")
        return _TORCH_STORAGES[name]

    def persistent_load(self, key: Any) -> tuple[str, str, int]:
        """Dtype, name and number of elements of a storage, whose content stands at the end."""
        kind, dtype, name, _, length, *view = key
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError("a storage of an unknown kind")
        return str(dtype), str(name), int(length)

    @classmethod
    def read_storage(cls, content: bytes) -> _Storage:
        """Read what ``torch.save`` writes for one storage, without its zip format."""
        file = io.BytesIO(content)
        magic, protocol, system, storage, names = (cls(file).load() for _ in range(5))
        if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL) or not system["little_endian"]:
            raise ValueError("a tensor in an unknown format")
        dtype, name, length = storage
        if names != [name] or struct.unpack("<q", file.read(8)) != (length,):
            raise ValueError("a tensor with a malformed storage")
        values = np.frombuffer(file.read(), dtype)
        if len(values) != length:
            raise ValueError("a truncated tensor")
        return _Storage(values)
