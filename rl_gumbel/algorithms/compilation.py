"""`compile=True` of the algorithms: `torch.compile` where it works, with the reason where not."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from rl_gumbel.envs.base import TorchEnv


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function; if its first call fails, a warning says why and it runs as is.

    Nothing is compiled before the first call. On a GPU it is replayed as a CUDA graph.
    """
    mode = "reduce-overhead" if torch.cuda.is_available() else None
    state: dict[str, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "chosen" not in state:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler's own imports
                    attempt = torch.compile(function, dynamic=False, mode=mode)
                    result = attempt(*args, **kwargs)
                state["chosen"] = attempt
                return result
            except Exception as error:  # compilers fail in many ways, and none is worth a run
                reason = str(error).strip().splitlines() or [""]
                warnings.warn(
                    f"compile=True has no effect on {function.__name__}: "
                    f"{type(error).__name__}: {reason[0]}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                state["chosen"] = function
        return state["chosen"](*args, **kwargs)

    return call


def compile_steps(env: TorchEnv) -> None:
    """Compile the steps of an environment, once."""
    if "advance" not in vars(env):
        env.advance = compiled(env.advance)  # type: ignore[method-assign]
