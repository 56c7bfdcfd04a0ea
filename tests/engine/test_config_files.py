"""Config files of anyone: what is no config is one line that names the file."""

from __future__ import annotations

import os
import pathlib
import random
import re

import pytest

from d2_smallobj.engine import build_config
from d2_smallobj.engine.config_files import find_config, read_config_file, shipped_configs

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
REFUSED = {
    "empty": ("", "expected lines KEY: VALUE, got nothing"),
    "list": ("- SEED: 1\n", r"got a list \(\[\{'SEED': 1\}\]\)"),
    "string": ("SEED\n", r"got a str \('SEED'\)"),
    "integer key": ("SOLVER: {1: 2}\n", "keys must be names, got 1 in SOLVER"),
    "integer key above": ("1: 2\n", "keys must be names, got 1$"),
    "list as key": ("? [1]\n: 2\n", "unhashable key, line 1"),
    "base a number": ("_BASE_: 3\n", "_BASE_ must be the name of a file, got 3"),
    "base itself": ("_BASE_: wrong.yaml\n", "builds on itself"),
    "base a list": ("_BASE_: [{}]\n", "_BASE_ must be the name of a file, got {}"),
    "base elsewhere": ("_BASE_: /etc/passwd\n", r"_BASE_ /etc/passwd must be a local file .*yaml"),
    "base on the web": ("_BASE_: https://x.org/a.yaml\n", "must be a local file"),
    "base missing": ("_BASE_: nothing.yaml\n", r"nothing\.yaml does not exist"),
    "anchor in itself": ("a: &a [*a]\n", r"\*a names nothing, or what it is itself a part of"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "nested more than 20 levels deep"),
    "deep indent": ("".join(" " * i + "a:\n" for i in range(99)), "nested more than 20 levels"),
    "bomb": (BOMB, "more than 10,000 values"),
    "many": ("a: [" + "1, " * 10_001 + "1]\n", "more than 10,000 values"),
    "large": ("# " + "x" * 1_000_000, "more than 100,000 bytes"),
    "two documents": ("SEED: 1\n---\nSEED: 2\n", "another document, line 2"),
    "no text": ("\0\x7f", "not plain YAML: "),
    "a date": ("SEED: 2026-99-99\n", "month must be in 1"),
    "code": ("SEED: !!python/object/apply:os.getcwd []\n", "os.getcwd., line 1"),
    "no node": ("SOLVER: 3\n", "."),
    "no leaf": ("SEED: {A: 1}\n", "."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_config_is_one_line(tmp_path, name):
    text, told = REFUSED[name]
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    for other, content in (("above.yaml", "_BASE_: wrong.yaml\n"), ("wrong.yaml", text)):
        (tmp_path / other).write_text(content)
        with pytest.raises(ValueError, match=told) as caught:
            build_config(str(tmp_path / other))
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}/")
        # yacs names the file that was asked for, and the key.
        assert "wrong.yaml" in message or name.startswith("no ")
        assert len(message.splitlines()) == 1
        assert len(message) < 500


def test_a_circle_of_files(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    with pytest.raises(ValueError, match=r"c\.yaml: _BASE_ \S+a\.yaml builds on itself"):
        build_config(str(tmp_path / "a.yaml"))


def test_several_bases_and_names_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: &s {MAX_ITER: 7}\nSEED: 1\n")
    (tmp_path / "b.yaml").write_text("SMALLOBJ: {TAU: 3, SCALES: &x [0.5, 1], TEST: {SCALES: *x}}")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSEED: 2\n")
    cfg = build_config(str(tmp_path / "c.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SMALLOBJ.TAU, cfg.SEED) == (7, 3.0, 2)
    assert cfg.SMALLOBJ.TEST.SCALES == [0.5, 1]


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "a.yaml").write_text("_BASE_: pipe.yaml\n")
    with pytest.raises(ValueError, match=r"pipe\.yaml does not exist, or is no regular file"):
        build_config(str(tmp_path / "a.yaml"))
    with pytest.raises(FileNotFoundError, match=r"--config-file \S+pipe\.yaml does not exist"):
        build_config(str(tmp_path / "pipe.yaml"))


def refusal(path):
    """Why a file is refused; None for a tree."""
    try:
        assert isinstance(read_config_file(path), dict)
    except ValueError as error:
        return str(error)
    return None


def test_damaged_files_give_an_error_that_names_them_or_a_tree(tmp_path):
    content = b"".join(
        pathlib.Path(path).read_bytes() for name, path in shipped_configs().items() if "voc" in name
    )[:1500]
    path, draw, refused = tmp_path / "damaged.yaml", random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 4, 16))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        message = refusal(path)
        if message is not None:
            refused += 1
            assert re.match(rf"{re.escape(str(path))}: not ", message)
            assert len(message.splitlines()) == 1
    assert 20 < refused <= 60


def test_a_name_of_no_config():
    with pytest.raises(FileNotFoundError, match=r"the nearest: .*voc_sbce\.yaml"):
        find_config("vocsbce.yaml")
