"""The command line as `python -m rl_gumbel`."""

import sys

from rl_gumbel.cli import main

if __name__ == "__main__":
    sys.exit(main())
