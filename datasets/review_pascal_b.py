#!/usr/bin/env python
"""Sort the images of PASCAL-B by hand: ``smallobj prepare review`` as a script."""

from d2_smallobj.commands.review_pascal_b import main

if __name__ == "__main__":
    main()
