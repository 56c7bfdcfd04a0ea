#!/usr/bin/env python
"""Predict label maps with trained weights: ``smallobj predict`` as a script."""

from d2_smallobj.commands.train_net import predict as main

if __name__ == "__main__":
    main()
