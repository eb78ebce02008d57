"""``python -m tlray``: the same as the command ``tlray``."""

from tlray.cli import main

if __name__ == "__main__":
    main()
