"""Evaluate a bundle on a split: `ray job submit ... -- python jobs/evaluate.py BUNDLE DATA --split test`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
