"""Models on disk without pickle."""

from rl_gumbel.checkpoint.model import FORMAT_VERSION, load_model, save_model

__all__ = ["FORMAT_VERSION", "load_model", "save_model"]
