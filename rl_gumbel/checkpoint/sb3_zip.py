"""Zips of Stable-Baselines3: written whole, read as tensors alone."""

import io
import zipfile
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from rl_gumbel.checkpoint.files import write_file

POLICY, VARIABLES = "policy.pth", "pytorch_variables.pth"
MAX_RATIO = 10
"""A member of more bytes than so many times those of the file is a bomb: weights hardly pack."""


def write_zip(model: BaseAlgorithm, path: str | Path) -> None:
    """Write a model as a zip that the `load` of its class reads, optimisers included."""
    content = io.BytesIO()
    model.save(content)
    write_file(Path(path), content.getvalue())


def read_zip(path: Path) -> dict[str, Tensor]:
    """Return the tensors of policy (`policy.NAME`) and coefficients in a zip of SB3.

    What the zip holds as pickled objects is not read.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not one, or claims a size that it cannot have, in one line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = {f"policy.{k}": v for k, v in _read_member(archive, POLICY).items()}
            if VARIABLES in archive.namelist():
                tensors |= _read_member(archive, VARIABLES)
            return tensors
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, zlib and torch raise many kinds for a damaged file
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is not a zip of Stable-Baselines3: {reason}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> dict[str, Tensor]:
    _check_size(archive, name, Path(str(archive.filename)).stat().st_size)
    content = archive.read(name)
    # torch's own file is a zip too; its older format allocates what it claims.
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for part in inner.namelist():
            _check_size(inner, part, len(content))
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    named = isinstance(tensors, dict) and all(isinstance(key, str) for key in tensors)
    if not named or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{name} does not hold named tensors")
    return dict(tensors)


def _check_size(archive: zipfile.ZipFile, name: str, size: int) -> None:
    claimed = archive.getinfo(name).file_size
    if claimed > MAX_RATIO * size:
        raise ValueError(f"{name} claims {claimed} bytes in a file of {size}")
