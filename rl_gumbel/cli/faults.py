"""What ends a command though its user did nothing wrong, in a line and an exit code."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from rl_gumbel.cli.errors import FailedEnvError, NumbersError, StorageError
from rl_gumbel.config import TrainConfig
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.faults import EnvError, NumericalError, StorageFailedError

SIZES = ("buffer_size", "batch_size", "n_steps", "num_minibatches")
"""Settings of an algorithm that memory depends on, where it has them."""


@contextlib.contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn a fault of what runs inside into a `CommandError`.

    The traceback of an environment's own error is printed: its author needs it.

    Raises:
        FailedEnvError: for an environment that failed.
        NumbersError: for numbers that are not finite, or a lack of memory.
        StorageError: for a last checkpoint that cannot be written.
    """
    try:
        yield
    except NumericalError as error:
        raise NumbersError(f"{config.env}: {error}{advise(config)}") from error
    except StorageFailedError as error:
        raise StorageError(str(error)) from error
    except EnvError as error:
        if isinstance(error.__cause__, Exception) and is_lack_of_memory(error.__cause__):
            raise NumbersError(describe_memory(error.__cause__, config)) from error
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise FailedEnvError(f"{config.env}: {error}") from error
    except Exception as error:
        if is_lack_of_memory(error):
            raise NumbersError(describe_memory(error, config)) from error
        failed = find_torch_env(error)
        if failed is None:
            raise
        traceback.print_exception(error)
        text = " ".join(str(error).split())
        raise FailedEnvError(
            f"{config.env}: {failed} (seed {config.seed}): {type(error).__name__}: {text}"
        ) from error


def advise(config: TrainConfig) -> str:
    """Return what else may be done about numbers that are not finite."""
    return "; --nonfinite reset goes on" if config.nonfinite == "raise" else ""


def is_lack_of_memory(error: Exception) -> bool:
    """Return whether memory, of the device or the host, was not enough."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def describe_memory(error: Exception, config: TrainConfig) -> str:
    """Return the sizes that decide how much memory is needed."""
    sizes: dict[str, Any] = {"num_envs": config.num_envs}
    for name in SIZES:
        if getattr(config.algorithm, name, None) is not None:
            sizes[name] = getattr(config.algorithm, name)
    sizes["net_arch"] = getattr(config.policy_kwargs, "net_arch", None)
    shown = ", ".join(f"{name} {value}" for name, value in sizes.items() if value is not None)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Without where in torch's sources it was noticed.
    reason = re.sub(r"^\[.*?\] .*?\. (?=\w+Allocator)", "", reason)
    peak = ""
    if torch.cuda.is_available() and (most := torch.cuda.max_memory_allocated()):
        peak = f"; at most {most / 1e9:.2f} GB were in use"
    smaller = [name for name in ("num_envs", *SIZES[:3]) if name in sizes]
    return f"out of memory with {shown}{peak}: {reason}; lower {' or '.join(smaller)}"


def find_torch_env(error: Exception) -> str | None:
    """Return which environments failed where, if a batched environment raised the error."""
    found = None
    frames = error.__traceback__
    while frames is not None:
        inside = frames.tb_frame.f_locals
        if isinstance(inside.get("self"), TorchEnv):
            env = inside["self"]
            found = (
                f"environments 0 to {env.num_envs - 1} failed in {frames.tb_frame.f_code.co_name}"
            )
            if isinstance(inside.get("action"), torch.Tensor):
                action = inside["action"].detach().cpu().tolist()[:3]  # enough for a line
                found += f", after actions {action}{' ...' if env.num_envs > 3 else ''}"
        frames = frames.tb_next
    return found
