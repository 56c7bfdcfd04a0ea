#!/usr/bin/env python
"""Train and evaluate a network: ``smallobj train`` as a script."""

from d2_smallobj.commands.train_net import main

if __name__ == "__main__":
    main()
