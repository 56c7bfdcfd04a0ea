"""``--help`` of every subcommand: examples that parse, one text for one option, short, no torch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict

import pytest

from d2_smallobj.commands import smallobj
from d2_smallobj.commands.smallobj import SUBCOMMANDS
from d2_smallobj.utils import cli

NAMES = [*SUBCOMMANDS, "evaluate merge"]
# Where one name needs two texts.
OWN_TEXT = {
    "--output": "a folder, or the one file that is written",
    "--dataset": "what it must have: prepare pseudo-labels and weak-labels",
}


class ParsedError(Exception):
    """Stops a command after its command line."""


@pytest.fixture
def parse(monkeypatch):
    """``parse(arguments)``: the parser that a command line of ``smallobj`` meets."""
    plain = argparse.ArgumentParser.parse_args

    def stop(parser, arguments):
        if arguments != ["PARSER"]:
            plain(parser, arguments)
        raise ParsedError(parser)

    monkeypatch.setattr(cli._Parser, "parse_args", stop)
    monkeypatch.setenv("COLUMNS", "100")

    def call(arguments):
        monkeypatch.setattr(sys, "argv", ["smallobj"])
        with pytest.raises(ParsedError) as stopped:
            smallobj.main(arguments)
        return stopped.value.args[0]

    return call


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_examples_and_is_short(parse, name):
    text = parse([*name.split(), "PARSER"]).format_help()
    head, usage, rest = text.partition("\nusage: ")
    assert usage
    lines = head.replace("\\\n", "").splitlines()
    assert re.fullmatch("Examples?:", lines[0])
    commands = [line.strip() for line in lines if line.startswith("    ")]
    own = [line for line in commands if f"smallobj {name}".rstrip() in line]
    assert own
    assert own[0] == commands[0]
    for command in commands:
        parts = shlex.split(re.sub(r" {2,}\(.*", "", command))
        start = next(i for i, part in enumerate(parts) if part in ("smallobj", TRAIN))
        parse([*(["train"] if parts[start] == TRAIN else []), *parts[start + 1 :]])
    lines = text.splitlines()
    assert max(len(line) for line in lines if not line.startswith("usage: ")) <= 100
    assert len(lines) <= 62
    assert rest.splitlines()[0].startswith(f"smallobj {name}")
    assert rest.splitlines()[1] == ""  # a usage of one line
    # An option a line, but for a default that is a list of files.
    further = [line for line in lines if re.match(" {20}", line)]
    assert len(further) <= (4 if name == "prepare pascal-b" else 1), further


TRAIN = "tools/train_net.py"


def test_every_option_has_a_text_which_is_the_same_everywhere(parse):
    found = defaultdict(set)
    for name in NAMES:
        for action in parse([*name.split(), "PARSER"])._actions:
            assert action.help, (name, action.dest)
            if action.help == argparse.SUPPRESS:
                continue
            if action.nargs != 0:
                assert action.metavar, (name, action.dest)
            text = re.sub(r" \(default.*\)$", "", action.help)
            metavar = re.sub(r"\[?NAME=\]?", "", str(action.metavar))
            for flag in action.option_strings or [action.dest]:
                found[flag].add((metavar, text))
    for flag in ("names", "opts", "-h"):
        del found[flag]
    assert {flag for flag, texts in found.items() if len(texts) > 1} == {*OWN_TEXT, "runs"}
    # One thing has one word.
    words = {metavar for texts in found.values() for metavar, _ in texts}
    assert not words & {"FOLDER", "JSON", "RUN_DIR", "N|FILE", "voc|coco|N|FILE"}


def test_all_of_them_need_no_torch_and_at_most_two_seconds(repository):
    program = (
        "import contextlib, io, os, sys, time\n"
        "from d2_smallobj.commands import smallobj\n"
        f"for name in {NAMES}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        smallobj.main([*name.split(), '--help'])\n"
        "print(sorted({'torch', 'detectron2', 'matplotlib', 'scipy'} & set(sys.modules)))\n"
        "print(os.environ['OMP_WAIT_POLICY'], time.process_time() < 2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository), "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("OMP_WAIT_POLICY", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # The policy is set by train and predict before torch loads its OpenMP.
    assert done.stdout == "[]\nPASSIVE True\n"
