"""What the command ``smallobj`` and the scripts of tools/ and datasets/ run."""
