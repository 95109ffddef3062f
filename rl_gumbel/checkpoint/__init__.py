"""Models and checkpoints on disk without pickle."""

from rl_gumbel.checkpoint.callback import CheckpointCallback, TrainingStoppedError
from rl_gumbel.checkpoint.model import FORMAT_VERSION, load_model, load_weights, save_model
from rl_gumbel.checkpoint.sb3_zip import write_zip
from rl_gumbel.checkpoint.store import Checkpoint, DamagedError, FormatError, find_checkpoint

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointCallback",
    "DamagedError",
    "FormatError",
    "TrainingStoppedError",
    "find_checkpoint",
    "load_model",
    "load_weights",
    "save_model",
    "write_zip",
]
