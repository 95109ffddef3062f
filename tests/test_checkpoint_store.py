"""Checkpoints on disk: whole or not there, rotated, and verified before anything is read."""

import json
import os
import re
from itertools import permutations

import numpy as np
import pytest
import torch

from rl_gumbel.checkpoint import DamagedError, FormatError, find_checkpoint
from rl_gumbel.checkpoint.store import FILES, write_checkpoint
from rl_gumbel.checkpoint.tree import read_tree, write_tree


def write(run_dir, steps, keep=2, content="content"):
    def fill(directory):
        for name in FILES:
            (directory / name).write_text(f"{content} of {name} at {steps}")

    write_checkpoint(run_dir, steps, fill, keep)


def names(run_dir):
    return sorted(os.listdir(run_dir / "checkpoints"))


def test_the_last_few_are_kept_and_the_newest_is_named(tmp_path):
    for steps in (5, 10, 100, 20):
        write(tmp_path, steps)
    assert names(tmp_path) == ["10", "20", "LATEST"]  # 100 was a future that was given up
    assert (tmp_path / "checkpoints/LATEST").read_text() == "20\n"
    found = find_checkpoint(tmp_path)
    assert (found.steps, found.path, found.skipped) == (20, tmp_path / "checkpoints/20", ())


def test_before_the_first_there_is_none(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write(tmp_path, 1)
    before = names(tmp_path)

    def fail(directory):
        (directory / "state.json").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, fail, 2)
    assert names(tmp_path) == before
    assert find_checkpoint(tmp_path).steps == 1


def test_every_byte_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """A power cut must not leave a name without its content: files, directory, rename, names."""
    log = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        log.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}/"))
        real_fsync(descriptor)

    def rename(source, target, **kwargs):
        log.append("rename")
        real_rename(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write(tmp_path, 7)
    aside = f"checkpoints/.7.{os.getpid()}"
    assert log.index("rename") == len(FILES) + 2
    assert set(log[: len(FILES) + 1]) == {f"{aside}/{name}" for name in (*FILES, "manifest.json")}
    assert log[len(FILES) + 1 : len(FILES) + 4] == [aside, "rename", "checkpoints"]


def test_what_a_killed_process_left_aside_is_removed(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "checkpoints/.2.99").mkdir()
    (tmp_path / "checkpoints/.2.99/state.json").write_text("half")
    (tmp_path / "checkpoints/.LATEST.99").write_text("2")
    assert find_checkpoint(tmp_path).steps == 1
    write(tmp_path, 3)
    assert names(tmp_path) == ["1", "3", "LATEST"]


def test_a_damaged_checkpoint_of_the_same_steps_is_replaced(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "checkpoints/2/state.json").write_text("")
    write(tmp_path, 2)
    assert find_checkpoint(tmp_path).steps == 2


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*sorted(FILES), "manifest.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "damaged|does not describe|is missing|instead of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "instead of|damaged"),
        (lambda path: path.write_bytes(b""), "instead of|damaged"),
        (os.remove, "missing"),
        (lambda path: (path.unlink(), path.mkdir()), "missing"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "missing"),
    ],
    ids=["flipped", "short", "empty", "missing", "directory", "pipe"],
)
def test_damage_is_named_and_the_checkpoint_before_taken(tmp_path, name, damage, message):
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path / "checkpoints/2" / name)
    found = find_checkpoint(tmp_path)
    assert found.steps == 1
    (line,) = found.skipped
    assert str(tmp_path / "checkpoints/2") in line
    assert re.search(message, line) and "\n" not in line


def test_a_latest_that_is_gone_is_told(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "checkpoints/2").rename(tmp_path / "elsewhere")
    assert find_checkpoint(tmp_path).skipped == (
        f"{tmp_path}/checkpoints/2, the latest, is missing",
    )


def test_a_kill_between_the_rename_and_latest_costs_nothing(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "checkpoints/LATEST").write_text("1\n")
    assert find_checkpoint(tmp_path).steps == 2


def test_where_nothing_is_whole_each_reason_is_told(tmp_path):
    for steps in (1, 2):
        write(tmp_path, steps)
        (tmp_path / f"checkpoints/{steps}/model.json").unlink()
    with pytest.raises(DamagedError, match=r"no checkpoint that is whole: .*/2/model\.json.*/1/m"):
        find_checkpoint(tmp_path)


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    """Going back to an older one would silently give up what was trained since."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    edit_manifest(tmp_path / "checkpoints/2", format_version=2)
    with pytest.raises(FormatError, match="has format 2; this version of rl-gumbel reads 1"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "extra"])
def test_a_manifest_cannot_name_other_files(tmp_path, name):
    write(tmp_path, 1)
    path = tmp_path / "checkpoints/1"
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files={**files, name: files["model.json"]})
    with pytest.raises(DamagedError, match="does not describe"):
        find_checkpoint(tmp_path)


# --- trees ----------------------------------------------------------------------------------------


def same(left, right):
    if isinstance(left, torch.Tensor | np.ndarray):
        assert type(left) is type(right) and left.dtype == right.dtype
        layouts = [x.strides if isinstance(x, np.ndarray) else x.stride() for x in (left, right)]
        return (
            bool((left == right).all()) and left.shape == right.shape and layouts[0] == layouts[1]
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def test_a_tree_comes_back_the_same(tmp_path):
    shared = torch.arange(6.0)
    tree = {
        "a/b": [None, True, 3, 0.1, 1e-320, float("inf"), "text", 2**127],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "betas": (0.9, 0.999)},
        "views": [shared[:3], shared[3:], shared, shared.view(2, 3).T],
        "layouts": [torch.rand(2, 3, 4).permute(order) for order in permutations(range(3))],
        "types": [torch.ones(2, dtype=t) for t in (torch.bool, torch.uint8, torch.float64)],
        "arrays": (np.arange(3), np.zeros((0, 2), np.float32), np.array([True])),
        "$tensor": {"$items": [("x", 1)]},
        "empty": [{}, [], ()],
    }
    write_tree(tree, tmp_path, "tree")
    assert same(tree, read_tree(tmp_path, "tree"))


def test_a_tree_holds_no_objects(tmp_path):
    with pytest.raises(TypeError, match="a/0: cannot save object without pickle"):
        write_tree({"a": [object()]}, tmp_path, "tree")
