"""`make_vec`: an id to batched environments, in torch where we have them, else of Gymnasium."""

from numbers import Integral
from typing import Any

import torch

from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.vec_env.facade import check_render_mode
from rl_gumbel.vec_env.from_gymnasium import make_gymnasium_env
from rl_gumbel.vec_env.names import find_spec, find_torch_id, make_torch_env

BACKENDS = ("auto", "torch", "gymnasium")


def make_vec(
    id: str,
    num_envs: int,
    device: torch.device | str = "auto",
    backend: str = "auto",
    *,
    vectorization_mode: str | None = None,
    render_mode: str | None = None,
    gradients: bool = False,
    **kwargs: Any,
) -> BatchedEnv:
    """Return `num_envs` environments that step together, tensors in and out.

    Args:
        id: of Gymnasium (also `package:Id`) or of `rl_gumbel.envs.ENVS`, the latter also with
            `rl_gumbel/` in front.
        num_envs: B, at least 1.
        device: of every tensor; `auto` is CUDA where there is one.
        backend: `torch`; `gymnasium`, which steps on the CPU in numpy; or `auto`, torch where the
            id has a torch version. The result's `backend` says what runs.
        vectorization_mode: of the Gymnasium backend: `sync`, `async` (a process for each), or
            `vector_entry_point`; None is the id's vector entry point where it resets in the same
            step, else `sync`.
        render_mode: `rgb_array` for frames from `render`; None for none.
        gradients: let rewards and observations carry a gradient to one-hot actions; for torch
            environments that are `differentiable`.
        kwargs: of the environment.

    Raises:
        ValueError: for a name that is not known, a setting that would be ignored, `torch` for an id
            without a torch version, gradients where there are none, or CUDA where there is none.
        TypeError: for spaces that are not supported.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} of {id} must be one of {BACKENDS}")
    if not isinstance(num_envs, Integral) or num_envs < 1:
        raise ValueError(f"num_envs {num_envs!r} of {id} must be an integer of at least 1")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} of {id}: CUDA is not available; use 'cpu'")
    if backend == "torch" or (backend == "auto" and find_torch_id(id)):
        if vectorization_mode is not None:
            raise ValueError(
                f"vectorization_mode {vectorization_mode!r} of {id} needs backend='gymnasium'"
            )
        env = make_torch_env(id, num_envs, device=device, gradients=gradients, **kwargs)
        check_render_mode(env, render_mode)
        return env
    spec = find_spec(id)
    if gradients:
        raise ValueError(f"gradients {gradients!r} of {id} needs an environment in torch")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    return make_gymnasium_env(spec, num_envs, torch.device(device), vectorization_mode, kwargs)
