#!/usr/bin/env python
"""Build PASCAL-B: ``smallobj prepare pascal-b`` as a script."""

from d2_smallobj.commands.build_pascal_b import prepare_pascal_b as main

if __name__ == "__main__":
    main()
