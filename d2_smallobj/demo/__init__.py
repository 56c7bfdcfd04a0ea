"""The demo data set: seeded synthetic scenes with flawed pseudo labels."""
