"""What the commands report to their user instead of a traceback."""

USER_ERROR = 2
"""Exit code of a mistake in the command, the configuration or the environment's name."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more, as the shell's for SIGPIPE."""


class UserError(Exception):
    """A mistake of the user; the message is complete and stands on one or two lines."""
