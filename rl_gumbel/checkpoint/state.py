"""What decides how training goes on, beside the weights: as a tree, and back into a new process.

An algorithm names its own part of it in `loop_state` and `env_state`; optimisers and normalisers
are those that SB3 saves too.
"""

import random
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.checkpoint.replay import get_replay, set_replay
from rl_gumbel.vec_env import SB3VecEnv

State = dict[str, Any]


def get_state(model: Any) -> State:
    """Return the state of a training between two iterations, as a tree; changes nothing.

    Args:
        model: a `BatchedAlgorithm` that is learning.
    """
    logger = model._logger  # the property of GumbelSAC would take its means
    replay = getattr(model, "replay_buffer", None)
    return {
        "device": model.device.type,
        "elapsed_seconds": (time.time_ns() - model.start_time) / 1e9,
        "modules": {name: recursive_getattr(model, name).state_dict() for name in _modules(model)},
        "loop": {name: recursive_getattr(model, name) for name in model.loop_state},
        "episodes": {"info": list(model.ep_info_buffer), "success": list(model.ep_success_buffer)},
        "replay": None if replay is None else get_replay(replay),
        "environments": get_env_state(model.env),
        "of_environments": {name: recursive_getattr(model, name) for name in model.env_state},
        "log": {
            "values": dict(logger.name_to_value),
            "counts": dict(logger.name_to_count),
            "excluded": dict(logger.name_to_excluded),
        },
        "generators": get_generators(model),
    }


def set_state(model: Any, state: State) -> str | None:
    """Go on from what `get_state` returned; return why not exactly, or None if exactly.

    Args:
        model: built from the same settings, its environments just reset by `learn`.
        state: of the other one.

    Raises:
        ValueError: if it does not fit.
    """
    same_device = state["device"] == model.device.type
    reason = None
    if not same_device:
        reason = f"it was trained on {state['device']}, and is on {model.device.type} now"
    elif not set_env_state(model.env, state["environments"]):
        reason = "the state of these environments cannot be saved"
    set_modules(model, state)
    names = model.loop_state if reason else model.loop_state + model.env_state
    values = state["loop"] | state["of_environments"]
    for name in names:
        if name in values:  # not every older checkpoint has all of them
            recursive_setattr(model, name, _to(model, values[name]))
    for buffer, key in ((model.ep_info_buffer, "info"), (model.ep_success_buffer, "success")):
        buffer.clear()
        buffer.extend(state["episodes"][key])
    if state["replay"] is not None:
        set_replay(model.replay_buffer, state["replay"], cut=reason is not None)
    log, logger = state["log"], model._logger
    logger.name_to_value.update(log["values"])
    logger.name_to_count.update(log["counts"])
    logger.name_to_excluded.update(log["excluded"])
    model.start_time = time.time_ns() - round(state["elapsed_seconds"] * 1e9)
    set_generators(model, state["generators"], own=same_device)
    return reason


def _modules(model: Any) -> list[str]:
    """Return the names of optimisers and normalisers; the policy is saved as a model."""
    return [name for name in model._get_torch_save_params()[0] if name != "policy"]


def set_modules(model: Any, state: State) -> None:
    """Give a model its optimisers and normalisers out of what `get_state` returned."""
    for name in _modules(model):
        recursive_getattr(model, name).load_state_dict(state["modules"][name])


def _to(model: Any, tree: Any) -> Any:
    """Return the tree with its tensors on the model's device."""

    def move(value: Any) -> Any:
        return value.to(model.device) if isinstance(value, Tensor) else value

    return tree_map(move, tree)


def get_env_state(env: VecEnv) -> State | None:
    """Return the state of environments; {} before their first reset, None if it cannot be saved."""
    return env.get_state() if isinstance(env, SB3VecEnv) else None


def set_env_state(env: VecEnv, state: State | None) -> bool:
    """Put environments into a state; return whether that is possible."""
    if state is None or not isinstance(env, SB3VecEnv):
        return False
    env.set_state(state)
    return True


def get_generators(model: Any) -> State:
    """Return the states of all global random streams, and of the action space's own."""
    kind, keys, *rest = np.random.get_state()
    is_cuda = model.device.type == "cuda"
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(model.device) if is_cuda else None,
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
        "action_space": model.action_space.np_random.bit_generator.state,
    }


def set_generators(model: Any, state: State, *, own: bool) -> None:
    """Go back to states that `get_generators` returned; `own`: that of the device too."""
    torch.set_rng_state(state["torch"])
    if own and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], model.device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    model.action_space.np_random.bit_generator.state = state["action_space"]
