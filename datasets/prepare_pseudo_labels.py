#!/usr/bin/env python
"""Turn what a method writes into label maps: ``smallobj prepare pseudo-labels`` as a script."""

from d2_smallobj.commands.prepare import prepare_pseudo_labels as main

if __name__ == "__main__":
    main()
