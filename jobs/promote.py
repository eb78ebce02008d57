"""Put a model into the registry: `ray job submit ... -- python jobs/promote.py RUN|BUNDLE NAME`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["promote", *sys.argv[1:]])
