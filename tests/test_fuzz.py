"""Files with bytes that are not theirs: each loads, equal where it has a checksum, or is refused.

A few hundred mutations here; ten thousand, with other seeds, in `make test-full`.
"""

import random
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from tiny_envs import Tiny

from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.checkpoint import DamagedError, FormatError, find_checkpoint, load_model, save_model
from rl_gumbel.checkpoint.store import write_checkpoint
from rl_gumbel.checkpoint.tree import read_tree, write_tree
from rl_gumbel.config import ConfigError, TrainConfig, dump_config, load_config

CONFIGS = sorted(path for path in Path(str(files("rl_gumbel") / "configs")).glob("*/*.yaml"))


def mutations(quick, full):
    return [
        pytest.param(1, quick, id="quick"),
        pytest.param(2, full, marks=pytest.mark.full, id="full"),
    ]


def mutate(content, dice):
    """Bytes flipped, dropped, doubled, moved, cut off, or of another kind of file."""
    content = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        at = dice.randrange(len(content) or 1)
        kind = dice.randrange(7)
        if kind == 0 and content:
            content[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and content:
            content[at] = dice.randrange(256)
        elif kind == 2:
            del content[at : at + dice.choice([1, 4, 50])]
        elif kind == 3:
            content[at:at] = content[at : at + dice.choice([1, 8, 64])]
        elif kind == 4:
            content[at:at] = dice.choice([b"\0", b"\xff\xfe", b"{", b"]", b"9" * 30, b"- ", b"\n"])
        elif kind == 5:
            del content[at:]
        else:
            other = dice.randrange(len(content) or 1)
            content[at : at + 8] = content[other : other + 8]
    return bytes(content)


@pytest.mark.parametrize(("seed", "number"), mutations(150, 4000))
def test_a_damaged_configuration_loads_or_is_refused_in_a_line(tmp_path, seed, number):
    dice, path, refused = random.Random(seed), tmp_path / "config.yaml", 0
    for _ in range(number):
        path.write_bytes(mutate(dice.choice(CONFIGS).read_bytes(), dice))
        try:
            config = load_config(path, {})
        except ConfigError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            refused += 1
            continue
        assert isinstance(config, TrainConfig)
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path, {}) == config
    assert refused > number / 10


@pytest.fixture(scope="module")
def model():
    return ALGORITHMS["sac"](
        "MlpPolicy", Tiny(spaces.Discrete(3)),
        buffer_size=4, policy_kwargs={"net_arch": [4]}, device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize(("seed", "number"), mutations(100, 2000))
def test_a_damaged_model_loads_or_is_refused_in_a_line(tmp_path, model, seed, number):
    """Its files have no checksum, so that a weight may be another; nothing else may happen."""
    save_model(model, tmp_path / "whole")
    names = [path.name for path in (tmp_path / "whole").iterdir()]
    dice, refused = random.Random(seed), 0
    for _ in range(number):
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        path = tmp_path / "broken" / dice.choice(names)
        path.write_bytes(mutate(path.read_bytes(), dice))
        try:
            assert type(load_model(tmp_path / "broken", device="cpu")) in ALGORITHMS.values()
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and str(tmp_path / "broken") in str(error)
            refused += 1
        shutil.rmtree(tmp_path / "broken")
    assert refused > number / 10


@pytest.mark.parametrize(("seed", "number"), mutations(150, 4000))
def test_a_damaged_checkpoint_is_equal_or_refused_in_a_line(tmp_path, model, seed, number):
    tree = {"numbers": torch.arange(50.0), "words": ["a", None, 2.5], "loop": {"n": 3}}

    def write(directory):
        save_model(model, directory)
        write_tree(tree, directory, "state")

    write_checkpoint(tmp_path / "whole", 64, write, keep=2)
    weights = model.policy.state_dict()
    names = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file()
    )
    dice, refused = random.Random(seed), 0
    for _ in range(number):
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        path = tmp_path / "broken" / dice.choice(names)
        path.write_bytes(mutate(path.read_bytes(), dice))
        try:
            found = find_checkpoint(tmp_path / "broken")
            assert found is not None and found.steps == 64
            state = read_tree(found.path, "state")
            assert torch.equal(state.pop("numbers"), tree["numbers"])
            assert state == {"words": ["a", None, 2.5], "loop": {"n": 3}}
            loaded = load_model(found.path, device="cpu").policy.state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in weights.items())
        except (DamagedError, FormatError) as error:
            assert "\n" not in str(error) and str(tmp_path / "broken") in str(error)
            refused += 1
        shutil.rmtree(tmp_path / "broken")
    assert refused > number / 3
