"""Fine-tune one model: `ray job submit ... -- python jobs/train.py CONFIG [key=value ...]`."""

import sys

from tlray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
