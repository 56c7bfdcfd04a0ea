#!/usr/bin/env python
"""Show how figures move when predictions change: ``smallobj sensitivity`` as a script."""

from d2_smallobj.commands.draw_sensitivity import main

if __name__ == "__main__":
    main()
