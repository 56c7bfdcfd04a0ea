#!/usr/bin/env python
"""Compare mixed supervision with its baselines: ``smallobj mixed`` as a script."""

from d2_smallobj.commands.run_experiments import mixed_supervision as main

if __name__ == "__main__":
    main()
