#!/usr/bin/env python
"""Build PASCAL-B: ``smallobj prepare pascal-b`` as a script."""

from d2_smallobj.commands.prepare_pascal_b import main

if __name__ == "__main__":
    main()
