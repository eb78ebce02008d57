"""Serve models over HTTP: `ray job submit ... -- python jobs/serve.py NAME|BUNDLE...`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
