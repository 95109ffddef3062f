"""The command `rl-gumbel`: `train`, `evaluate`, `list`.

Importing this package imports neither torch nor Gymnasium, so that help and a refused command are
immediate; a verb imports what it needs inside its function.
"""

import sys
from collections.abc import Sequence

from rl_gumbel.cli.errors import INTERRUPTED, USER_ERROR, UserError
from rl_gumbel.cli.parser import parse
from rl_gumbel.config import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        if args.verb == "train":
            from rl_gumbel.cli.train import train as run
        elif args.verb == "evaluate":
            from rl_gumbel.cli.evaluate import evaluate as run
        else:
            from rl_gumbel.cli.list import show_list as run
        return run(args)
    except (UserError, ConfigError) as error:
        print(f"rl-gumbel: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("rl-gumbel: interrupted", file=sys.stderr)
        return INTERRUPTED
