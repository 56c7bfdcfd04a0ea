#!/usr/bin/env python
"""Run the paper's ablation: ``smallobj ablation`` as a script."""

from d2_smallobj.commands.run_experiments import ablation as main

if __name__ == "__main__":
    main()
