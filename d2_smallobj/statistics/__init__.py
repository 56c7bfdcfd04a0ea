"""How certain the figures are, how methods compare, how evenly instances spread (numpy only)."""
