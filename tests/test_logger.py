"""One read of the device for all metrics; the names are those that are documented."""

import re
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rl_gumbel
from rl_gumbel.logger import TAGS, record


class Reads(TorchDispatchMode):
    """Counts the operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def logger() -> Logger:
    return Logger(None, [])


def test_each_metric_is_averaged_over_the_mappings_that_have_it(logger):
    rows = [{"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, {"a": torch.tensor(2.0)}]
    record(logger, rows)
    assert logger.name_to_value["a"] == pytest.approx(1.5)
    assert logger.name_to_value["b"] == pytest.approx(5.0)
    assert type(logger.name_to_value["a"]) is float


def test_a_vector_becomes_a_histogram_for_tensorboard_only(logger):
    record(logger, [{"v": torch.tensor([0.0, 2.0])}, {"v": torch.tensor([4.0, 2.0])}])
    assert isinstance(logger.name_to_value["v"], Tensor)
    torch.testing.assert_close(logger.name_to_value["v"], torch.tensor([2.0, 2.0]))
    assert set(logger.name_to_excluded["v"]) == {"stdout", "log", "json", "csv"}


def test_no_metrics_log_nothing(logger):
    """After `train(gradient_steps=0)`."""
    record(logger, [])
    assert not logger.name_to_value


def test_metrics_of_different_dtypes_are_logged_together(logger):
    dtypes = {"a": torch.float64, "b": torch.bfloat16, "c": torch.float32}
    record(logger, [{name: torch.tensor(0.5, dtype=dtype) for name, dtype in dtypes.items()}])
    assert logger.name_to_value == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_scalars_are_read_at_once(logger):
    """However many there are; `tolist` of the stack reads no element by itself."""
    rows = [{"a": torch.tensor(1.0), "b": torch.tensor(2.0)}] * 10
    with Reads() as reads:
        record(logger, rows)
    assert reads.count <= 2


def test_every_tag_that_the_package_writes_is_documented():
    """Each tag of `train`, `estimator`, `codes` and `eval` in the sources stands in TAGS."""
    package = Path(rl_gumbel.__file__).parent
    sources = [path.read_text() for path in package.rglob("*.py") if path.name != "logger.py"]
    names = re.compile(r'"((?:train|estimator|codes|eval)/\w+)"')
    used = {name for source in sources for name in names.findall(source)}
    assert {"train/actor_loss", "estimator/cosine", "eval/mean_reward"} <= used
    assert used <= TAGS.keys()
