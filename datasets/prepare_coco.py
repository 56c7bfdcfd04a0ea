#!/usr/bin/env python
"""Paint COCO's annotations as label maps: ``smallobj prepare coco`` as a script."""

from d2_smallobj.commands.prepare import prepare_coco as main

if __name__ == "__main__":
    main()
