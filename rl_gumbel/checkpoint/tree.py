"""Nested state on disk: `NAME.safetensors` for its tensors, `NAME.json` for the rest.

A tree is made of None, bool, int, float, str, tensors, numpy arrays, and lists, tuples and dicts of
trees. Reading one builds these and nothing else, whatever the files say. Tensors come back with
the memory layout that they had, or what is computed from them would be rounded otherwise.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Tree = Any
TENSOR, ORDER, ARRAY, TUPLE, ITEMS = "$tensor", "order", "$array", "$tuple", "$items"
MAX_JSON_BYTES = 1 << 26


def write_tree(tree: Tree, directory: Path, name: str) -> None:
    """Write both files of a tree into an existing directory.

    Raises:
        TypeError: for a value that is not part of a tree.
        OSError: if they cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def store(path: str, value: Tensor) -> str:
        value = value.detach().cpu().contiguous()  # a file has no past
        while path in tensors:  # keys may spell the same path, as "a/b" and "a" above "b"
            path += "'"
        storage = value.untyped_storage().data_ptr()
        # safetensors refuses two names for one storage; large tensors have theirs for themselves.
        tensors[path] = value.clone() if storage in storages else value
        storages.add(storage)
        return path

    document = _encode(tree, "", store)
    try:
        save_file(tensors, directory / f"{name}.safetensors")
    except SafetensorError as error:  # which a full disk is to safetensors
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    (directory / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def read_tree(directory: Path, name: str) -> Tree:
    """Return what `write_tree` was given, tensors on the CPU.

    Raises:
        ValueError: if a file is not what it should be, in one line.
    """
    path = directory / f"{name}.json"
    try:
        document = read_json(path)
        path = directory / f"{name}.safetensors"
        return _decode(document, load_file(path))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {reason}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: if it is none, or larger or deeper than any of ours.
        OSError: if it cannot be read.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{path} is no file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes of JSON; at most {MAX_JSON_BYTES} are read")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _encode(tree: Tree, path: str, store: Callable[[str, Tensor], str]) -> Any:
    def inner(key: Any, value: Tree) -> Any:
        return _encode(value, f"{path}/{key}" if path else str(key), store)

    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, Tensor):
        # Dimensions as they lie in memory, outermost first: kernels round by it.
        order = sorted(range(tree.ndim), key=lambda i: -tree.stride(i))
        dense = tree.permute(order)
        if order == list(range(tree.ndim)) or not dense.is_contiguous():
            return {TENSOR: store(path, tree)}
        return {TENSOR: store(path, dense), ORDER: order}
    if isinstance(tree, np.ndarray):
        return {ARRAY: store(path, torch.from_numpy(np.asarray(tree, order="C")))}
    if isinstance(tree, list):
        return [inner(i, value) for i, value in enumerate(tree)]
    if isinstance(tree, tuple):
        return {TUPLE: [inner(i, value) for i, value in enumerate(tree)]}
    if isinstance(tree, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: inner(key, value) for key, value in tree.items()}
        return {ITEMS: [[inner("key", key), inner(key, value)] for key, value in tree.items()]}
    raise TypeError(f"{path}: cannot save {type(tree).__name__} without pickle")


def _decode(document: Any, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(document, list):
        return [_decode(value, tensors) for value in document]
    if not isinstance(document, dict):
        return document
    if TENSOR in document:
        tensor = tensors[document[TENSOR]]
        order = document.get(ORDER, range(tensor.ndim))
        return tensor.permute([order.index(i) for i in range(tensor.ndim)])
    if ARRAY in document:
        return tensors[document[ARRAY]].numpy()
    if TUPLE in document:
        return tuple(_decode(value, tensors) for value in document[TUPLE])
    if ITEMS in document:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in document[ITEMS]}
    return {key: _decode(value, tensors) for key, value in document.items()}
