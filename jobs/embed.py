"""Embed a data set into Parquet: `ray job submit ... -- python jobs/embed.py MODEL DATA OUT`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
