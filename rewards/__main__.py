"""`python -m rewards ...`: the command `rewards`, from a checkout."""

import sys

from rewards.command import main

if __name__ == "__main__":
    sys.exit(main())
