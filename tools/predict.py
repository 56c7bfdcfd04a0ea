#!/usr/bin/env python
"""Predict label maps with trained weights: ``smallobj predict`` as a script."""

from d2_smallobj.commands.predict import main

if __name__ == "__main__":
    main()
