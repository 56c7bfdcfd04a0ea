#!/usr/bin/env python
"""Sort the images of PASCAL-B by hand: ``smallobj prepare review`` as a script."""

from d2_smallobj.commands.build_pascal_b import review_pascal_b as main

if __name__ == "__main__":
    main()
