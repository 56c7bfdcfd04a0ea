"""Commands of datasets/, run in this process."""

import pytest


@pytest.fixture
def command(run_tool):
    """``command(script, *arguments)``: exit status, text on stdout, text on stderr."""

    def run(script, *arguments):
        done = run_tool(script.removesuffix(".py"), *arguments)
        return done.returncode, done.stdout, done.stderr

    return run
