#!/usr/bin/env python
"""Score predicted label maps: ``smallobj evaluate`` as a script."""

from d2_smallobj.commands.evaluate import main

if __name__ == "__main__":
    main()
