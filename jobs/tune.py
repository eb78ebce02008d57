"""Search for the best model: `ray job submit ... -- python jobs/tune.py CONFIG [key=value ...]`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
