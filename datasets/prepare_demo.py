#!/usr/bin/env python
"""Draw the demo scenes: ``smallobj prepare demo`` as a script."""

from d2_smallobj.commands.prepare import prepare_demo as main

if __name__ == "__main__":
    main()
