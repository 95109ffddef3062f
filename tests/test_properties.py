"""What holds for every space, mask, dtype, batch, temperature and setting: drawn, not listed."""

import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_envs import Tiny

from rl_gumbel import ESTIMATORS
from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.checkpoint import load_model, save_model
from rl_gumbel.checkpoint.tree import read_tree, write_tree
from rl_gumbel.checkpoint.values import from_json, space_from_json, space_to_json, to_json
from rl_gumbel.config import ALGOS, dump_config, load_config, read_value
from rl_gumbel.distributions import FactoredCategorical

FACTOR = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "full" else 1


def cases(number):
    """So many cases in `make test`."""
    return settings(max_examples=number * FACTOR)


SIZES = st.integers(1, 6)
SEEDS = st.integers(0, 2**32 - 1)
SPACES = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), SIZES, st.integers(-3, 3)),
    st.lists(st.tuples(SIZES, st.integers(-3, 3)), min_size=1, max_size=4).map(
        lambda pairs: spaces.MultiDiscrete([n for n, _ in pairs], start=[s for _, s in pairs])
    ),
    SIZES.map(spaces.MultiBinary),
)
BATCHES = st.sampled_from([(), (1,), (3,), (2, 3)])


def random_index(layout, batch, generator):
    columns = [torch.randint(size, batch, generator=generator) for size in layout.sizes]
    return torch.stack(columns, -1)


def random_mask(layout, batch, generator):
    """What may be chosen: at least one category of each factor, no padding."""
    shape = (*batch, layout.num_factors, layout.num_categories)
    mask = (torch.rand(shape, generator=generator) < 0.5) & layout.valid
    kept = layout.index_to_one_hot(random_index(layout, batch, generator))
    return mask | kept.bool()


# --- actions ----------------------------------------------------------------------------------


@cases(300)
@given(space=SPACES, batch=st.sampled_from([(1,), (4,)]), seed=SEEDS)
def test_actions_and_one_hots_go_there_and_back(space, batch, seed):
    layout = ActionLayout.from_space(space)
    index = random_index(layout, batch, torch.Generator().manual_seed(seed))
    action = layout.to_action(index)
    assert all(space.contains(np.asarray(row, space.dtype).reshape(space.shape)) for row in action)
    assert torch.equal(layout.to_index(action), index)
    one_hot = layout.index_to_one_hot(index)
    assert one_hot.shape == (*batch, layout.num_factors, layout.num_categories)
    assert torch.equal(one_hot.sum(-1), torch.ones(index.shape))
    assert torch.equal(one_hot.argmax(-1), index)
    assert torch.equal(layout.to_action(one_hot), action)
    assert (one_hot == 0)[~layout.valid.expand_as(one_hot)].all()
    flat = layout.flatten(one_hot)
    assert flat.shape[-1] == sum(layout.sizes)
    assert torch.equal(layout.unflatten(flat), one_hot)


@cases(100)
@given(space=SPACES)
def test_sizes_are_those_of_the_space(space):
    layout = ActionLayout.from_space(space)
    assert layout.num_factors == max(1, math.prod(space.shape))
    assert layout.num_joint == math.prod(layout.sizes)
    assert math.isclose(layout.max_entropy, math.log(layout.num_joint), abs_tol=1e-6)
    assert layout.valid.sum() == layout.num_flat == sum(layout.sizes)


# --- estimators -------------------------------------------------------------------------------


@cases(600)
@given(
    name=st.sampled_from(sorted(ESTIMATORS)),
    space=SPACES,
    batch=BATCHES,
    seed=SEEDS,
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    temperature=st.floats(0.05, 20.0),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_estimators_choose_what_may_be_chosen_and_have_finite_gradients(
    name, space, batch, seed, scale, temperature, dtype
):
    layout, generator = ActionLayout.from_space(space), torch.Generator().manual_seed(seed)
    mask = random_mask(layout, batch, generator)
    logits = (scale * torch.randn(mask.shape, generator=generator)).to(dtype).requires_grad_()
    estimator = ESTIMATORS[name]
    temperature = max(temperature, estimator.min_temperature)
    sample = estimator(logits, temperature=temperature, mask=mask, generator=generator)
    assert mask.gather(-1, sample.index.unsqueeze(-1)).all()
    assert sample.one_hot.dtype == sample.probs.dtype == dtype
    assert (sample.one_hot[~mask] == 0).all() and (sample.probs[~mask] == 0).all()
    tolerance = 0.02 if dtype in (torch.bfloat16, torch.float16) else 1e-5
    ones = torch.ones(sample.index.shape)
    torch.testing.assert_close(sample.probs.float().sum(-1), ones, rtol=0, atol=tolerance)
    torch.testing.assert_close(sample.one_hot.float().sum(-1), ones, rtol=0, atol=tolerance)
    exact = torch.zeros_like(sample.one_hot).scatter(-1, sample.index.unsqueeze(-1), 1.0)
    assert estimator.is_relaxed or torch.equal(sample.one_hot.detach(), exact)
    (sample.one_hot * torch.randn(mask.shape, generator=generator)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()


# --- the distribution -------------------------------------------------------------------------


@cases(400)
@given(space=SPACES, batch=BATCHES, seed=SEEDS, scale=st.sampled_from([0.0, 1.0, 20.0]))
def test_the_factored_categorical_is_torchs_for_each_factor(space, batch, seed, scale):
    layout, generator = ActionLayout.from_space(space), torch.Generator().manual_seed(seed)
    mask = random_mask(layout, batch, generator)
    first, second = (
        scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    ours, other = FactoredCategorical(first, mask), FactoredCategorical(second, mask)
    # The same without a mask, where the categories that may not be chosen are left out.
    theirs, theirs_other = (
        torch.distributions.Categorical(logits=x.masked_fill(~mask, -1e30)) for x in (first, second)
    )
    index = ours.sample(generator)
    assert mask.gather(-1, index.unsqueeze(-1)).all()
    assert mask.gather(-1, ours.mode.unsqueeze(-1)).all()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(ours.log_prob(index), theirs.log_prob(index).sum(-1), **close)
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1), **close)
    kl = torch.distributions.kl_divergence(theirs, theirs_other).sum(-1)
    torch.testing.assert_close(ours.kl(other), kl, **close)
    one_hot = layout.index_to_one_hot(index).double()
    torch.testing.assert_close(ours.log_prob(one_hot), ours.log_prob(index), **close)
    assert torch.equal(ours.mode, theirs.probs.argmax(-1))


# --- files ------------------------------------------------------------------------------------

BOUNDS = st.one_of(st.floats(width=32, allow_nan=False), st.just(math.inf), st.just(-math.inf))
BOXES = st.builds(
    lambda ends, shape, dtype: spaces.Box(
        np.full(shape, min(ends), dtype), np.full(shape, max(ends), dtype), shape, dtype
    ),
    st.tuples(BOUNDS, BOUNDS),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    st.sampled_from([np.float32, np.float64]),
)
SHAPED = st.lists(st.integers(1, 3), min_size=2, max_size=3).map(spaces.MultiBinary)
EVERY_SPACE = st.one_of(SPACES, SHAPED, BOXES)


@cases(200)
@given(
    space=st.one_of(
        EVERY_SPACE,
        st.dictionaries(st.text(max_size=5), EVERY_SPACE, min_size=1, max_size=3).map(spaces.Dict),
    )
)
def test_spaces_survive_json(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text()
)
SETTINGS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(alphabet="abc_", max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@cases(200)
@given(value=SETTINGS)
def test_settings_survive_json(value):
    assert from_json(json.loads(json.dumps(to_json(value)))) == value


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50
    ).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    SEEDS,
)
TREES = st.recursive(
    st.one_of(SCALARS, TENSORS, TENSORS.filter(lambda t: t.dtype != torch.bfloat16).map(
        lambda tensor: tensor.numpy()
    )),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.booleans()), inner,
                        max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


def same(first, second):
    """Whether two trees are equal to the last bit and type."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@cases(150)
@given(tree=TREES)
def test_trees_survive_the_disk(tree):
    with tempfile.TemporaryDirectory() as directory:
        write_tree(tree, Path(directory), "tree")
        assert same(read_tree(Path(directory), "tree"), tree)


@cases(40)
@given(
    algo=st.sampled_from(["sac", "reppo", "ppo"]),
    space=SPACES,
    layers=st.lists(st.integers(1, 5), max_size=2),
    seed=st.integers(0, 1000),
)
def test_models_survive_the_disk(algo, space, layers, seed):
    kwargs = {"policy_kwargs": {"net_arch": layers}, "seed": seed, "device": "cpu"}
    if algo == "sac":
        kwargs["buffer_size"] = 1
    model = ALGORITHMS[algo]("MlpPolicy", Tiny(space), **kwargs)
    with tempfile.TemporaryDirectory() as directory:
        save_model(model, directory)
        loaded = load_model(directory, device="cpu")
    assert loaded.action_space == space
    weights = loaded.policy.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in model.policy.state_dict().items())
    obs = np.random.default_rng(seed).uniform(-1, 1, (5, 3)).astype(np.float32)
    pairs = (each.predict(obs, deterministic=True)[0] for each in (model, loaded))
    np.testing.assert_array_equal(*pairs)


# --- configurations ---------------------------------------------------------------------------

POSITIVE = st.floats(1e-6, 1e6)
UNIT = st.floats(0, 1)
RATES = st.one_of(
    POSITIVE,
    st.builds(
        lambda kind, start, end: {"schedule": kind, "start": start, "end": end},
        st.sampled_from(["linear", "exponential", "cosine"]),
        POSITIVE,
        POSITIVE,
    ),
)
OVERRIDES = st.fixed_dictionaries(
    {("algo",): st.sampled_from(sorted(ALGOS))},
    optional={
        ("env",): st.text(min_size=1, max_size=12),
        ("seed",): st.integers(0, 2**32 - 1),
        ("total_timesteps",): st.integers(1, 10**12),
        ("num_envs",): st.integers(1, 10**6),
        ("eval_freq",): st.integers(0, 10**9),
        ("nonfinite",): st.sampled_from(["raise", "reset", "zero"]),
        ("restart_failed_envs",): st.integers(0, 100),
        ("env_kwargs", "name"): st.one_of(SCALARS.filter(lambda x: not isinstance(x, float))),
        ("algorithm", "gamma"): UNIT,
        ("algorithm", "learning_rate"): RATES,
        ("algorithm", "stats_window_size"): st.integers(1, 1000),
        ("policy_kwargs", "net_arch"): st.lists(st.integers(1, 512), max_size=3),
        ("policy_kwargs", "activation_fn"): st.sampled_from(["relu", "tanh", "elu", "gelu"]),
    },
)


@cases(150)
@given(overrides=OVERRIDES)
def test_a_configuration_is_read_back_from_what_is_written_of_it(overrides):
    config = load_config(None, overrides)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path, {}) == config


@cases(100)
@given(number=st.floats(allow_nan=False))
def test_every_way_to_write_a_number_is_read_as_that_number(number):
    for text in (repr(number), f"{number:.17e}", f"{number:+.17g}"):
        text = text.replace("inf", ".inf")
        assert float(read_value(text)) == number
