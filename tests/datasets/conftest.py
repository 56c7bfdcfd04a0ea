"""Commands of datasets/, run in this process: a fraction of the time of a new one."""

from __future__ import annotations

import sys

import pytest

from d2_smallobj.commands import build_pascal_b, prepare

COMMANDS = {
    "prepare_coco.py": prepare.prepare_coco,
    "prepare_demo.py": prepare.prepare_demo,
    "prepare_pascal_b.py": build_pascal_b.prepare_pascal_b,
    "prepare_pseudo_labels.py": prepare.prepare_pseudo_labels,
}


@pytest.fixture
def command(capsys, monkeypatch):
    """``command(script, *arguments)``: exit status, text on stdout, text on stderr."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = 0
        try:
            COMMANDS[script]()
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        message = status if isinstance(status, str) else ""
        return 1 if message else status, captured.out, captured.err + message

    return run
