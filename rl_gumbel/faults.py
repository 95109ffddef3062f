"""What ends training that nobody's command asked to end: a failed environment, lost numbers."""


class EnvError(RuntimeError):
    """An environment failed; says which one, its seed, step and action. Its own error is the cause.

    Raised too for an observation of another shape than its space, and for a state in which the
    action mask allows nothing.
    """


class StorageFailedError(RuntimeError):
    """The last checkpoint of a run cannot be written; those before are as they were."""


class NumericalError(RuntimeError):
    """Numbers are not finite: of an environment, which the message names, or of the gradients."""
