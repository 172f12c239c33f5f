"""`python -m wire.client URL IMAGE...`: score images with a reward service, as `rewards score` does."""

import sys

from wire.client.command import score

if __name__ == "__main__":
    sys.exit(score(prog="python -m wire.client"))
