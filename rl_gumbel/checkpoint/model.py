"""A model on disk without pickle: `model.safetensors` for tensors, `model.json` for the rest.

The weights are enough to predict and to train on; the rest of a training is in its checkpoints, of
which these files are a part. Tensors and JSON are written aside and renamed, so a kill never leaves
half a file.
"""

import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.checkpoint.sb3_zip import read_zip
from rl_gumbel.checkpoint.tree import read_json
from rl_gumbel.checkpoint.values import from_json, space_from_json, space_to_json, to_json

FORMAT_VERSION = 1
TENSORS, RECORD = "model.safetensors", "model.json"

NOT_SETTINGS = {"self", "policy", "env", "tensorboard_log", "verbose", "device"}
"""Arguments of a constructor that do not belong to the model, or are kept in another way."""


def save_model(model: BaseAlgorithm, directory: str | Path) -> None:
    """Write the model into `directory`, which is made if it does not exist.

    Raises:
        TypeError: if the model was built with an argument that JSON cannot hold (a lambda as
            learning rate, a class that is not importable).
    """
    directory = Path(directory)
    record = {
        "format_version": FORMAT_VERSION,
        "algorithm": type(model).__name__,
        "policy": _policy_name(model),
        "settings": to_json(_settings(model)),
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
        "num_envs": model.n_envs,
    }
    # Copies, since safetensors refuses tensors that share memory (a shared features extractor).
    tensors = {
        f"policy.{name}": value.detach().cpu().contiguous().clone()
        for name, value in model.policy.state_dict().items()
    }
    for name in model._get_torch_save_params()[1]:  # learned coefficients
        tensors[name] = getattr(model, name).detach().cpu().clone()
    directory.mkdir(parents=True, exist_ok=True)
    # The step count travels with the tensors: the JSON then stays the same during a run, and the
    # two files agree whenever the process is killed.
    metadata = {"num_timesteps": str(model.num_timesteps)}
    write_file(directory / RECORD, json.dumps(record, indent=2).encode())
    write_file(directory / TENSORS, save(tensors, metadata))


def load_model(
    directory: str | Path,
    env: GymEnv | None = None,
    device: torch.device | str = "auto",
    **settings: Any,
) -> BaseAlgorithm:
    """Return the model that `save_model` wrote, with `env` if it shall train on.

    Args:
        directory: what `save_model` was given.
        env: its spaces must be those of the model.
        device: where to put it.
        **settings: constructor arguments to use instead of the saved ones.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, of another format, or does not fit `env`.
    """
    directory = Path(directory)
    record = _read_record(directory / RECORD)
    state, num_timesteps = _read_tensors(directory / TENSORS)
    algorithm = _find_algorithm(record, directory)
    try:
        observation_space = space_from_json(record["observation_space"])
        action_space = space_from_json(record["action_space"])
        saved = from_json({k: v for k, v in record["settings"].items() if k not in settings})
    except Exception as error:  # whatever the numbers and names of a damaged file lead to
        raise _damaged(directory / RECORD, error) from error
    if env is not None:
        env = algorithm._wrap_env(env, 0)
        check_for_correct_spaces(env, observation_space, action_space)
    try:
        model = algorithm(
            record["policy"],
            env,
            device=device,
            _init_setup_model=False,  # without an environment the spaces must be set first
            **{**saved, **settings},
        )
        model.observation_space = observation_space
        model.action_space = action_space
        model.n_envs = env.num_envs if env is not None else record["num_envs"]
        model._setup_model()
    except (MemoryError, torch.OutOfMemoryError):
        raise  # of sound settings, on a machine that is too small
    except Exception as error:
        raise _damaged(directory / RECORD, error) from error
    _set_state(model, state, directory)
    model.num_timesteps = num_timesteps
    return model


def _damaged(path: Path, error: Exception) -> ValueError:
    """Return the error of a file whose content cannot be used."""
    reason = " ".join(str(error).split())
    return ValueError(f"{path} cannot be used: {type(error).__name__}: {reason}")


def load_weights(model: BaseAlgorithm, path: str | Path) -> None:
    """Give a model the weights and coefficients that a file holds; nothing in it is run.

    Args:
        model: of the same networks.
        path: a directory of `save_model`, a checkpoint, or a zip that SB3's `save` wrote.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged, of other networks, or holds anything but tensors.
    """
    path = Path(path)
    tensors = _read_tensors(path / TENSORS)[0] if path.is_dir() else read_zip(path)
    _set_state(model, tensors, path)


def _settings(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the constructor arguments that rebuild the model, from its attributes."""
    names = [
        name
        for name in inspect.signature(type(model).__init__).parameters
        if name not in NOT_SETTINGS and not name.startswith("_")
    ]
    # SB3 keeps some arguments under a leading underscore.
    settings = {
        name: getattr(model, name if hasattr(model, name) else f"_{name}") for name in names
    }
    settings["policy_kwargs"] = dict(model.policy_kwargs)
    if "critic" in settings:  # the attribute is the network; its kind travels with the policy
        settings["critic"] = settings["policy_kwargs"].pop("critic")
    if "train_freq" in settings:
        frequency = settings["train_freq"]
        settings["train_freq"] = (frequency.frequency, frequency.unit.value)
    if settings.get("replay_buffer_class") is NStepReplayBuffer:
        # SB3's own choice for n_steps > 1, which it makes again, and only if it is not told to.
        settings["replay_buffer_class"] = None
        settings["replay_buffer_kwargs"] = {
            name: value
            for name, value in settings["replay_buffer_kwargs"].items()
            if name not in ("n_steps", "gamma")
        }
    return settings


def _policy_name(model: BaseAlgorithm) -> str:
    for name, policy_class in model.policy_aliases.items():
        if policy_class is model.policy_class:
            return name
    known = ", ".join(model.policy_aliases)
    raise TypeError(f"cannot save policy class {model.policy_class.__name__}; known: {known}")


def _find_algorithm(record: Mapping[str, Any], directory: Path) -> type[BaseAlgorithm]:
    # Looked up when needed: the algorithms stand above this module.
    algorithms = import_module("rl_gumbel.algorithms").ALGORITHMS
    by_class = {algorithm.__name__: algorithm for algorithm in algorithms.values()}
    name = str(record.get("algorithm"))
    if name not in by_class:
        known = ", ".join(by_class)
        raise ValueError(f"{directory}: unknown algorithm {name!r}; known: {known}")
    return by_class[name]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
        version = record["format_version"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent} holds no model: {path.name} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a model, or is damaged") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}; this version of rl-gumbel reads {FORMAT_VERSION}"
        )
    return dict(record)


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no model: {path.name} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, int((file.metadata() or {})["num_timesteps"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _set_state(model: BaseAlgorithm, state: dict[str, torch.Tensor], directory: Path) -> None:
    coefficients = {
        name: state.pop(name) for name in model._get_torch_save_params()[1] if name in state
    }
    policy = {name.removeprefix("policy."): value for name, value in state.items()}
    try:
        for name, value in coefficients.items():
            own = getattr(model, name)
            if value.shape != own.shape:
                raise RuntimeError(f"\n{name} is {list(value.shape)} and not {list(own.shape)}")
        model.policy.load_state_dict(policy)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{directory}: the tensors do not fit the networks: {reason}") from error
    with torch.no_grad():  # a learned coefficient is a leaf
        for name, value in coefficients.items():
            getattr(model, name).copy_(value)
