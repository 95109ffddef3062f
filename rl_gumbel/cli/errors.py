"""What the commands report to their user instead of a traceback, and the exit codes."""

import errno
from pathlib import Path

USER_ERROR = 2
"""Exit code of a mistake in the command, the configuration or the environment's name."""
ENVIRONMENT_ERROR = 3
"""Exit code of an environment that failed."""
NUMERICAL_ERROR = 4
"""Exit code of numbers that are not finite, or of a lack of memory."""
STORAGE_ERROR = 5
"""Exit code of files that cannot be written, or of a run without a checkpoint that is whole."""
STOPPED = 75
"""Exit code of a run that a signal stopped and `rl-gumbel resume` continues (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C where there is nothing to resume."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more, as the shell's for SIGPIPE."""


class CommandError(Exception):
    """What ends a command; the message is complete and stands on one or two lines."""

    code: int
    """The exit code."""


class UserError(CommandError):
    """A mistake of the user."""

    code = USER_ERROR


class FailedEnvError(CommandError):
    """An environment that failed; its own traceback was printed."""

    code = ENVIRONMENT_ERROR


class NumbersError(CommandError):
    """Numbers that are not finite, or a lack of memory."""

    code = NUMERICAL_ERROR


class StorageError(CommandError):
    """Files that cannot be written, or that are damaged."""

    code = STORAGE_ERROR


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What is not the user's doing: a full disk, a used up quota, a disk that fails."""


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error of a file or directory that cannot be written, in one line."""
    reason = error.strerror or str(error).strip().partition("\n")[0]
    return StorageError(f"cannot write {path}: {reason}")


def cannot_use(path: Path, error: OSError) -> CommandError:
    """Return the same of a run's directory: the user's mistake unless the disk is at fault."""
    failed = cannot_write(path, error)
    return failed if error.errno in NO_ROOM else UserError(str(failed))
