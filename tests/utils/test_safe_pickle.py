"""Pickled dicts of maps: what numpy and torch write is read, nothing else is run."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2_smallobj.utils.safe_pickle import read_npy_dict


def _same(read, value):
    value = value.numpy() if torch.is_tensor(value) else np.asarray(value)
    assert read.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", ">f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "bool"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(tmp_path, dtype, order):
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", {"keys": values, 3: np.zeros((0, 4), dtype)})
    found = read_npy_dict(tmp_path / "a.npy")
    assert list(found) == ["keys", 3]
    _same(found["keys"], values)
    assert found[3].shape == (0, 4)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
)
def test_tensors(tmp_path, dtype):
    whole = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    views = (whole[:, 1:, ::2], whole.permute(2, 0, 1), whole[:1].expand(5, 3, 4))
    tensors = dict(enumerate((whole, *views, whole[:0], whole[0, 0, 1])))
    np.save(tmp_path / "t.npy", tensors)
    found = read_npy_dict(tmp_path / "t.npy")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        _same(found[name], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numbers_texts_lists_and_old_tensors(tmp_path, protocol):
    value = {np.int64(4): 1.5, "a": [1, 2], "b": (3.0,), "c": "text", "d": None}
    value["e"] = torch.arange(300)
    _save(tmp_path / "n.npy", value, protocol)
    found = read_npy_dict(tmp_path / "n.npy")
    assert (found[4], found["c"], found["d"]) == (1.5, "text", None)
    _same(found["a"], [1, 2])
    _same(found["b"], [3.0])
    _same(found["e"], value["e"])


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 99),
        hnp.arrays(st.sampled_from(["f4", "u1", "i8"]), hnp.array_shapes(max_dims=3, max_side=5)),
        max_size=4,
    ),
    st.sampled_from([2, 3, 4]),
)
def test_what_numpy_saves_is_read(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "property.npy"
    _save(path, value, protocol)
    found = read_npy_dict(path)
    assert list(found) == list(value)
    for key, array in value.items():
        np.testing.assert_array_equal(found[key], array)


def _save(path, value, protocol=4):
    """As numpy.save, with any pickle protocol: numpy wrote 2 and 3 in the past."""
    array = np.empty((), object)
    array[()] = value
    header = io.BytesIO()
    description = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(header, description)
    body = pickle.dumps(array, protocol)
    path.write_bytes(header.getvalue() + body)
    return body


class _Runs:
    """Whoever unpickles this makes a file."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.system, "touch {}"), r"posix\.system|nt\.system"),
        ((eval, "open('{}', 'w')"), r"builtins\.eval"),
        ((exec, "open('{}', 'w')"), r"builtins\.exec"),
        ((subprocess.getoutput, "touch {}"), r"subprocess\.getoutput"),
        ((getattr, "", "format"), r"builtins\.getattr"),
        ((np.fromfile, "{}"), r"fromfile"),
        ((torch.load, "{}"), r"torch\.serialization\.load"),
        ((copyreg._reconstructor, object, object, None), r"copyreg\._reconstructor"),
    ],
    ids=lambda value: getattr(value[0], "__name__", None) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("place", ["value", "tensor"])
def test_nothing_is_run(tmp_path, call, named, place):
    proof = tmp_path / "proof"
    text = str(proof)
    evil = _Runs(*(a.replace("{}", text) if isinstance(a, str) else a for a in call))
    path = tmp_path / "evil.npy"
    if place == "tensor":
        # Hidden in the bytes that torch.load would be given.
        inner = pickle.dumps(evil, 2)
        evil, named = _Runs(torch.storage._load_from_bytes, inner), "refused, not run"
    _save(path, {"keys": evil})
    with pytest.raises(ValueError, match=rf"evil\.npy: .*safely: .*({named})"):
        read_npy_dict(path)
    assert not proof.exists()


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes of what a file has named: nothing that lasts may be named."""
    good = tmp_path / "good.npy"
    np.save(good, {0: np.ones((2, 2), np.float32)})
    for name in ("numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"):
        module, attribute = name.split()
        state = b"(N}X\x0c\x00\x00\x00__defaults__)stb"  # BUILD with (None, {name: ()})
        body = b"\x80\x04c" + f"{module}\n{attribute}\n".encode() + state + b"."
        header = good.read_bytes().split(b"\n", 1)[0] + b"\n"
        (tmp_path / "bad.npy").write_bytes(header + body)
        with pytest.raises(ValueError, match=r"bad\.npy: not a file of maps"):
            read_npy_dict(tmp_path / "bad.npy")
        assert read_npy_dict(good)[0].sum() == 4


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.arange(3), "a tensor that reaches beyond its storage"),
        (np.arange(3, dtype="i8"), r"an array of shape \(200,\) with 3 elements"),
    ],
)
def test_arrays_beyond_their_bytes(tmp_path, value, message):
    path = tmp_path / "t.npy"
    np.save(path, {"a": value})
    # TUPLE1 of BININT1: the size (3,) becomes (200,).
    content = path.read_bytes()
    assert b"K\x03\x85" in content
    path.write_bytes(content.replace(b"K\x03\x85", b"K\xc8\x85"))
    with pytest.raises(ValueError, match=rf"t\.npy: .*{message}"):
        read_npy_dict(path)


def test_a_memo_of_billions_of_entries(tmp_path):
    path = tmp_path / "m.npy"
    np.save(path, {})
    header = path.read_bytes().split(b"\n", 1)[0] + b"\n"
    path.write_bytes(header + b"\x80\x04Nr\xff\xff\xff\xff.")
    with pytest.raises(ValueError, match=r"m\.npy: .*the pickle is malformed"):
        read_npy_dict(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "expected a dict, got list"),
        ({"a": {"b": 1}}, "a dict within the dict"),
        ({"a": [np.ones(2)]}, "a list of something else than numbers"),
        ({1.5: np.ones(2)}, r"keys must be texts or integers, got 1\.5"),
        ({True: np.ones(2)}, "keys must be texts or integers, got True"),
        ({"a": np.array([None, 1])}, "an array of objects within the dict"),
        ({"a": np.zeros(2, "i4,f4")}, "an array of 'V8'"),
        ({"a": np.array(["x"])}, "an array of 'U1'"),
        ({"a": torch.zeros(2, dtype=torch.bfloat16)}, r"torch\.BFloat16Storage \(refused"),
    ],
)
def test_other_contents(tmp_path, value, message):
    _save(tmp_path / "x.npy", value)
    with pytest.raises(ValueError, match=rf"x\.npy: .*{message}"):
        read_npy_dict(tmp_path / "x.npy")


def test_plain_arrays_and_other_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"plain\.npy: expected a dict .*\(2, 3\) of float32"):
        read_npy_dict(tmp_path / "plain.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"text\.npy: not a complete \.npy file"):
        read_npy_dict(tmp_path / "text.npy")
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        read_npy_dict(tmp_path / "gone.npy")
    path = tmp_path / "cut.npy"
    np.save(path, {"a": torch.arange(9.0), "b": np.arange(99)})
    whole = path.read_bytes()
    for keep in (0, 5, 40, 128, 200, 400, -1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"cut\.npy: not a"):
            read_npy_dict(path)


def test_torch_is_not_needed(tmp_path):
    np.save(tmp_path / "t.npy", {"a": torch.arange(3)})
    program = "import sys\nfrom d2_smallobj.utils.safe_pickle import read_npy_dict\n"
    program += "print(read_npy_dict('t.npy')['a'].tolist(), 'torch' in sys.modules)"
    shown = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=tmp_path)
    assert shown.strip() == "[0, 1, 2] False"
