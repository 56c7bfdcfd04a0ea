"""Commands of datasets/, run in this process: a fraction of the time of a new one."""

from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.fixture
def command(repository, capsys, monkeypatch):
    """``command(script, *arguments)``: exit status, text on stdout, text on stderr."""

    def run(script, *arguments):
        path = repository / "datasets" / script
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        status = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        message = status if isinstance(status, str) else ""
        return 1 if message else status, captured.out, captured.err + message

    return run
