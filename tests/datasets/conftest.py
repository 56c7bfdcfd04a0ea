"""Commands of datasets/, run in this process: a fraction of the time of a new one."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.fixture
def command(capsys, monkeypatch):
    """``command(script, *arguments)``: exit status, text on stdout, text on stderr."""

    def run(script, *arguments):
        module = importlib.import_module(f"d2_smallobj.commands.{script.removesuffix('.py')}")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        message = status if isinstance(status, str) else ""
        return 1 if message else status, captured.out, captured.err + message

    return run
