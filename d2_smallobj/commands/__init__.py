"""What the command ``smallobj`` and the scripts of tools/ and datasets/ run."""

import sys

if sys.version_info < (3, 9):  # noqa: UP036
    # setup.py says so, too; a script can be run from a clone all the same.
    sys.exit(f"error: d2_smallobj needs Python 3.9 or newer, this is {sys.version.split()[0]}")
