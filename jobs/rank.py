"""Compare backbones and their stages on your pictures: `ray job submit ... -- python jobs/rank.py CONFIG`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["rank", *sys.argv[1:]])
