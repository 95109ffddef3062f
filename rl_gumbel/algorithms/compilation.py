"""`compile=True` of the algorithms: `torch.compile` where it works, with the reason where not."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.envs.base import Act, BatchedEnv, TorchEnv
from rl_gumbel.types import Obs, Step


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function; if that fails, a warning says why and it runs as is.

    The first call runs as it is: what it caches would be compiled in, and the second call compiled
    again. On a GPU the function is replayed as a CUDA graph, whose results are copied: the next
    replay writes over them.
    """
    # Else a function that computes gradients of its own would be compiled in two parts.
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # from PyTorch 2.11 on
        torch._dynamo.config.trace_autograd_ops = True
    graphs = torch.cuda.is_available()
    state: dict[str, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not state:
            state["first"] = function
            return function(*args, **kwargs)
        if "chosen" not in state:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler's own imports
                    attempt = torch.compile(
                        function, dynamic=False, mode="reduce-overhead" if graphs else None
                    )
                    if graphs:
                        attempt = _copying(attempt)
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


def _copying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function; every tensor of its results, also of a `Step`, is a copy."""

    def copy(value: Any) -> Any:
        if isinstance(value, Step):
            return Step(**{name: tree_map(copy, part) for name, part in vars(value).items()})
        return value.clone() if isinstance(value, Tensor) else value

    return lambda *args, **kwargs: tree_map(copy, function(*args, **kwargs))


def compile_steps(env: BatchedEnv) -> None:
    """Compile `act_and_step` of an environment, and `step` alone where it is torch's; once."""
    if "act_and_step" in vars(env):
        return
    if isinstance(env, TorchEnv):
        env.advance = compiled(env.advance)  # type: ignore[method-assign]
    made: dict[Act, Callable[[Obs], tuple[Tensor, Step]]] = {}

    def act_and_step(act: Act, obs: Obs) -> tuple[Tensor, Step]:
        if act not in made:
            made[act] = _fuse(env, act) if isinstance(env, TorchEnv) else _compile_act(env, act)
        return made[act](obs)

    env.act_and_step = act_and_step  # type: ignore[method-assign]


def _compile_act(env: BatchedEnv, act: Act) -> Callable[[Obs], tuple[Tensor, Step]]:
    return functools.partial(type(env).act_and_step, env, compiled(act))


def _fuse(env: TorchEnv, act: Act) -> Callable[[Obs], tuple[Tensor, Step]]:
    """Return `act_and_step` in one compiled call: most of a small step is the calling."""

    def act_and_advance(obs: Obs, mask: Tensor | None, *past: Any) -> Any:
        index = act(obs, mask)
        return index, type(env).advance(env, *past, env.layout.to_action(index))

    fused = compiled(act_and_advance)

    def act_and_step(obs: Obs) -> tuple[Tensor, Step]:
        index, following = fused(obs, env.action_mask, *env.past())
        return index, env.follow(*following)

    return act_and_step
