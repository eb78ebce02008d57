"""Ingest labelled pictures into a Parquet data set: `ray job submit ... -- python jobs/ingest.py SRC DST`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
