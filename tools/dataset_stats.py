#!/usr/bin/env python
"""Count the instances of data sets: ``smallobj stats`` as a script."""

from d2_smallobj.commands.dataset_stats import main

if __name__ == "__main__":
    main()
