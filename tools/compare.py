#!/usr/bin/env python
"""Compare scored methods: ``smallobj compare`` as a script."""

from d2_smallobj.commands.compare import main

if __name__ == "__main__":
    main()
