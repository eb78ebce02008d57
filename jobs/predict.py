"""Predict pictures: `ray job submit ... -- python jobs/predict.py BUNDLE FILE...`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
