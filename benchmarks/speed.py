"""Speed beside peers, in one run: environment, rollout, training of PPO, gradient steps of SAC.

    python benchmarks/speed.py run --threads 2
    python benchmarks/speed.py updates
    python benchmarks/speed.py solve --seeds 0 1 2 3 4
    python benchmarks/speed.py table

Every row is a process of its own, so that its peak memory is its own, and the rows of a size follow
one another, ours and the peers', `--repeats` times over: on a machine whose speed drifts only such
ratios count. CartPole-v1, separate 64x64 tanh networks, 4 epochs of 4 minibatches, the same number
of threads and the same allocator settings for everybody. `run` writes `results/speed.csv`, `solve`
(seconds until the last 100 training episodes average 475) `results/solve.csv`.

`updates` writes `results/updates.csv`: gradient steps of `GumbelSAC` and of SB3's SAC on batches of
256 from a replay of CartPole-v1. The networks are equal: SB3 runs on `OneHotActions`, so that its
action has the two numbers of our one-hot, and enters the critic at the first layer; ReLU, no layer
norm, a learned entropy coefficient, Adam at the same rate. Ours on batched environments of torch,
whose replay is tensors; each at what it would be given.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIZES = (1, 8, 64, 1024, 4096, 16384, 65536)
SECONDS = 3.0
"""That each measurement takes at least, after a warm-up."""
HORIZON = {1: 128, 8: 128, 64: 64}
"""Steps of a rollout where they are not 32."""
MAX_PEER = {"sb3-rollout": 1024, "sb3-training": 1024}
"""Sizes above which a peer that steps its environments one by one is not run."""
# glibc gives large blocks back to the kernel at each free and page-faults them in again.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
LEARNING_RATE = 2.5e-4


# --- what is measured: (num_envs) -> (function that does some steps, steps, shares) ---------------

Measured = tuple[Callable[[], object], int, Callable[[], dict[str, float]]]


def no_shares() -> dict[str, float]:
    return {}


def our_env(num_envs: int) -> Measured:
    import torch

    from rl_gumbel import make_vec

    env = make_vec("CartPole-v1", num_envs, device="cpu")
    env.reset(seed=0)
    action = torch.randint(2, (num_envs,))
    return lambda: env.step(action), num_envs, no_shares


def our_compiled_env(num_envs: int) -> Measured:
    import torch

    from rl_gumbel import make_vec
    from rl_gumbel.algorithms.compilation import compile_steps

    env = make_vec("CartPole-v1", num_envs, device="cpu")
    compile_steps(env)
    env.reset(seed=0)
    action = torch.randint(2, (num_envs,))
    return lambda: env.step(action), num_envs, no_shares


def gymnasium_env(num_envs: int) -> Measured:
    import gymnasium as gym
    import numpy as np

    env = gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    action = np.random.default_rng(0).integers(0, 2, num_envs)
    return lambda: env.step(action), num_envs, no_shares


def our_ppo(num_envs: int, compile: bool = False) -> Any:
    from rl_gumbel import make_vec
    from rl_gumbel.algorithms import BatchedPPO

    env = make_vec("CartPole-v1", num_envs, device="cpu")
    horizon = HORIZON.get(num_envs, 32)
    return BatchedPPO(
        "MlpPolicy",
        env,
        n_steps=horizon,
        num_minibatches=4,
        n_epochs=4,
        learning_rate=LEARNING_RATE,
        compile=compile,
        seed=0,
        device="cpu",
    )


def our_rollout(num_envs: int, compile: bool = False) -> Measured:
    from rl_gumbel.rollout import collect

    model = our_ppo(num_envs, compile)
    model.learn(1)
    env, act, shares = model.batched, model.policy.act, Shares()
    if not compile:  # else acting and stepping are one call
        act = shares.timed("policy", act)
        env.step = shares.timed("env", env.step)
    return lambda: collect(env, act, model._obs, model.n_steps), model.n_steps * num_envs, shares


def our_compiled_rollout(num_envs: int) -> Measured:
    return our_rollout(num_envs, compile=True)


def our_training(num_envs: int, compile: bool = False) -> Measured:
    model = our_ppo(num_envs, compile)
    steps = model.n_steps * num_envs
    model.learn(steps)
    shares = Shares()
    if not compile:  # else acting and stepping are one call
        model.batched.step = shares.timed("env", model.batched.step)
        model.policy.act = shares.timed("policy", model.policy.act)
    model.train = shares.timed("update", model.train)
    return lambda: model.learn(steps, reset_num_timesteps=False), steps, shares


def our_compiled_training(num_envs: int) -> Measured:
    return our_training(num_envs, compile=True)


def sb3_ppo(num_envs: int) -> Any:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    horizon = HORIZON.get(num_envs, 32)
    return PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", num_envs, seed=0),
        n_steps=horizon,
        batch_size=horizon * num_envs // 4,
        n_epochs=4,
        learning_rate=LEARNING_RATE,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        seed=0,
        device="cpu",
    )


def sb3_rollout(num_envs: int) -> Measured:
    model = sb3_ppo(num_envs)
    _, callback = model._setup_learn(1)
    collect = lambda: model.collect_rollouts(  # noqa: E731
        model.env, callback, model.rollout_buffer, model.n_steps
    )
    return collect, model.n_steps * num_envs, no_shares


def sb3_training(num_envs: int) -> Measured:
    model = sb3_ppo(num_envs)
    steps = model.n_steps * num_envs
    model.learn(steps)
    shares = Shares()
    model.env.step = shares.timed("env", model.env.step)
    model.collect_rollouts = shares.timed("rollout", model.collect_rollouts)
    model.train = shares.timed("update", model.train)
    return lambda: model.learn(steps, reset_num_timesteps=False), steps, shares


BATCH_SIZE = 256
REPLAY_SIZE = 10_000
UPDATES = 20
"""Gradient steps in a call of `train`."""


def our_sac(width: int, compile: bool = False) -> Measured:
    from torch import nn

    from rl_gumbel import make_vec
    from rl_gumbel.algorithms import GumbelSAC

    model = GumbelSAC(
        "MlpPolicy",
        make_vec("CartPole-v1", 8, device="cpu"),
        learning_rate=LEARNING_RATE,
        learning_starts=REPLAY_SIZE,
        compile=compile,
        cosine_interval=0,
        policy_kwargs={
            "net_arch": [width, width],
            "activation_fn": nn.ReLU,
            "layer_norm": False,
            "action_layer": "first",
        },
        seed=0,
        device="cpu",
    )
    model.learn(REPLAY_SIZE)
    model.train(UPDATES, BATCH_SIZE)
    train = partial(model.train, UPDATES, BATCH_SIZE)
    if compile:
        return train, UPDATES, partial(compiled_shares, model)
    shares = Shares()
    model.replay_buffer.sample = shares.timed("replay", model.replay_buffer.sample)
    model.update_critic = shares.timed("critic", model.update_critic)
    model.update_actor = shares.timed("actor", model.update_actor)
    model.target_value = shares.timed("target", model.target_value)
    return train, UPDATES, shares


def compiled_shares(model: Any) -> dict[str, float]:
    """Return the shares of the parts of an update, each compiled by itself: all are one call."""
    import torch

    from rl_gumbel.algorithms.compilation import compiled

    batch, temperature = model.replay_buffer.sample(BATCH_SIZE), torch.ones(())
    parts = {
        "replay": partial(model.replay_buffer.sample, BATCH_SIZE),
        "target": partial(compiled(model.target_value), batch),
        "critic": partial(compiled(model.step_critic), batch),
        "actor": partial(compiled(model.step_actor), batch.observations, temperature, None),
    }
    seconds = {}
    for name, call in parts.items():
        for _ in range(3):  # the second compiles
            call()
        seconds[name] = time_call(call)
    whole = sum(seconds.values()) - seconds["target"]  # which is a part of the critic's
    return {f"share_{name}": part / whole for name, part in seconds.items()}


def our_compiled_sac(width: int) -> Measured:
    return our_sac(width, compile=True)


def sb3_sac(width: int) -> Measured:
    import gymnasium as gym
    from stable_baselines3 import SAC

    from rl_gumbel.wrappers import OneHotActions

    model = SAC(
        "MlpPolicy",
        OneHotActions(gym.make("CartPole-v1")),
        learning_rate=LEARNING_RATE,
        learning_starts=REPLAY_SIZE,
        batch_size=BATCH_SIZE,
        policy_kwargs={"net_arch": [width, width]},
        seed=0,
        device="cpu",
    )
    model.learn(REPLAY_SIZE)
    return lambda: model.train(UPDATES, BATCH_SIZE), UPDATES, no_shares


ROWS: dict[str, Callable[[int], Measured]] = {
    "env": our_env,
    "compiled-env": our_compiled_env,
    "gymnasium-env": gymnasium_env,
    "rollout": our_rollout,
    "compiled-rollout": our_compiled_rollout,
    "sb3-rollout": sb3_rollout,
    "training": our_training,
    "compiled-training": our_compiled_training,
    "sb3-training": sb3_training,
}
UPDATE_ROWS: dict[str, Callable[[int], Measured]] = {
    "sac": our_sac,
    "compiled-sac": our_compiled_sac,
    "sb3-sac": sb3_sac,
}
"""Of the width of both hidden layers instead of the number of environments."""


class Shares:
    """The share of the time that each of several functions took."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time added up under `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start

        return call

    def reset(self) -> None:
        """Start again."""
        self.start = time.perf_counter()
        self.seconds.clear()

    def __call__(self) -> dict[str, float]:
        """Return the shares since the start."""
        total = time.perf_counter() - self.start
        return {f"share_{name}": seconds / total for name, seconds in self.seconds.items()}


# --- one row in a process, all rows in turn ---------------------------------------------------


def measure(name: str, size: int, threads: int) -> dict[str, Any]:
    """Return steps a second, shares and peak memory of this process."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    function, steps, shares = (ROWS | UPDATE_ROWS)[name](size)
    first = time.perf_counter()
    function()
    first = time.perf_counter() - first
    for _ in range(3 if first < SECONDS / 3 else 0):
        function()
    if isinstance(shares, Shares):
        shares.reset()
    return {
        "steps_per_second": steps / time_call(function),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **shares(),
    }


def time_call(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


FIELDS = [
    *("row", "num_envs", "threads", "repeat", "steps_per_second", "peak_mib"),
    *("share_env", "share_policy", "share_rollout", "share_update", "cpu", "torch"),
]
UPDATE_FIELDS = [
    *("row", "width", "threads", "repeat", "steps_per_second", "peak_mib"),
    *("share_replay", "share_target", "share_critic", "share_actor", "cpu", "torch"),
]
"""The share of the critic has that of its targets in it; the table takes it out."""


def run_all(args: argparse.Namespace) -> None:
    """Run every row at every size."""
    sizes = [
        (size, [name for name in args.rows if size <= MAX_PEER.get(name, size)])
        for size in args.sizes
    ]
    run_rows("speed.csv", FIELDS, "num_envs", sizes, args)


def run_updates(args: argparse.Namespace) -> None:
    """Run every row of gradient steps at every width."""
    sizes = [(width, list(UPDATE_ROWS)) for width in args.widths]
    run_rows("updates.csv", UPDATE_FIELDS, "width", sizes, args)


def run_rows(
    file_name: str,
    fields: list[str],
    size_name: str,
    sizes: list[tuple[int, list[str]]],
    args: argparse.Namespace,
) -> None:
    """Run the rows of each size in processes of their own; write the CSV as it grows."""
    import torch

    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(args.threads)}
    cpu = f"{describe_cpu()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    machine = {"cpu": cpu, "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / file_name).open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for size, names in sizes:
            for repeat in range(args.repeats):
                for name in names:
                    words = [sys.executable, __file__, "row", name, str(size), str(args.threads)]
                    out = subprocess.run(
                        words, env=environment, check=True, stdout=subprocess.PIPE, text=True
                    ).stdout
                    row = {"row": name, size_name: size, "threads": args.threads}
                    row |= {"repeat": repeat, **machine, **json.loads(out)}
                    writer.writerow(row)
                    file.flush()
                    print(f"{name} {size}: {row['steps_per_second']:,.0f} steps/s", flush=True)


def describe_cpu() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


# --- seconds to a solved task -----------------------------------------------------------------

THRESHOLD = 475.0


def solve(args: argparse.Namespace) -> None:
    """Write the seconds that each agent takes, seed by seed, ours and SB3's in turn."""
    path = RESULTS / "solve.csv"
    fields = ["agent", "seed", "threads", "seconds", "timesteps", "solved", "cpu"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for seed in args.seeds:
            for agent in ("BatchedPPO", "SB3 PPO"):
                words = [sys.executable, __file__, "solve-one", agent, str(seed)]
                words += [str(args.threads)]
                environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(args.threads)}
                out = subprocess.run(
                    words, env=environment, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
                row = {"agent": agent, "seed": seed, "threads": args.threads}
                row |= {"cpu": describe_cpu(), **json.loads(out)}
                writer.writerow(row)
                file.flush()
                print(row, flush=True)


def solve_one(agent: str, seed: int, threads: int) -> dict[str, Any]:
    """Return seconds of training until the last 100 episodes average 475."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(threads)

    class StopAtThreshold(BaseCallback):
        solved = False

        def _on_step(self) -> bool:
            return not self.solved

        def _on_rollout_start(self) -> None:
            returns = [info["r"] for info in self.model.ep_info_buffer]
            full = len(returns) == self.model.ep_info_buffer.maxlen
            self.solved = full and sum(returns) / len(returns) >= THRESHOLD

    stop = StopAtThreshold()
    model = our_solver(seed) if agent == "BatchedPPO" else sb3_solver(seed)
    start = time.perf_counter()
    model.learn(1_000_000 if agent == "BatchedPPO" else 100_000, callback=stop)
    seconds = time.perf_counter() - start
    stop._on_rollout_start()
    return {"seconds": seconds, "timesteps": model.num_timesteps, "solved": stop.solved}


def our_solver(seed: int) -> Any:
    """Return BatchedPPO with the settings of `configs/ppo/CartPole-v1.yaml`."""
    from rl_gumbel.cli import make_config
    from rl_gumbel.cli.backends import make_training_vec
    from rl_gumbel.cli.build import make_model
    from rl_gumbel.cli.parser import parse

    words = ["train", "--algo", "ppo", "--env", "CartPole-v1", "--seed", str(seed)]
    config = make_config(parse(words))
    return make_model(config, make_training_vec(config, "cpu"), "MlpPolicy", "cpu")


def sb3_solver(seed: int) -> Any:
    """Return SB3's PPO with the settings of rl-zoo3 (hyperparams/ppo.yml, CartPole-v1)."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    return PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda progress: 1e-3 * progress,
        clip_range=lambda progress: 0.2 * progress,
        seed=seed,
        device="cpu",
    )


# --- tables -----------------------------------------------------------------------------------


def tables() -> str:
    """Return the tables in Markdown."""
    parts = []
    made = {"speed.csv": speed_table, "updates.csv": updates_table, "solve.csv": solve_table}
    for name, make in made.items():
        if (RESULTS / name).exists():
            with (RESULTS / name).open(newline="") as file:
                parts.append(make(list(csv.DictReader(file))))
    return "\n\n".join(parts)


def speed_table(rows: list[dict[str, str]]) -> str:
    """Return medians over the repeats; ratios are of medians at the same size."""
    groups: dict[tuple[int, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((int(row["num_envs"]), row["row"]), []).append(row)
    speed = {
        key: median(float(row["steps_per_second"]) for row in group)
        for key, group in groups.items()
    }
    peers = {
        "env": "gymnasium-env",
        "compiled-env": "gymnasium-env",
        "rollout": "sb3-rollout",
        "compiled-rollout": "sb3-rollout",
        "training": "sb3-training",
        "compiled-training": "sb3-training",
    }
    first, counts = rows[0], sorted({len(group) for group in groups.values()})
    lines = [
        f"CartPole-v1, {first['threads']} threads, torch {first['torch']}, {first['cpu']}; medians "
        f"of {' or '.join(map(str, counts))} repeats.",
        "",
        "| | environments | steps/s | peer at the same size | ratio | env | policy | update "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (num_envs, name), group in groups.items():
        if name not in peers:
            continue
        peer = speed.get((num_envs, peers[name]))
        shares = [
            f"{100 * median(float(row[f'share_{part}']) for row in group):.0f}%"
            if group[0][f"share_{part}"]
            else ""
            for part in ("env", "policy", "update")
        ]
        lines.append(
            f"| {name} | {num_envs:,} | {speed[num_envs, name]:,.0f} | "
            + (f"{peer:,.0f} | {speed[num_envs, name] / peer:.1f}" if peer else " | ")
            + f" | {' | '.join(shares)} | {median(float(row['peak_mib']) for row in group):,.0f} |"
        )
    return "\n".join(lines)


def updates_table(rows: list[dict[str, str]]) -> str:
    """Return the medians over the repeats, beside SB3's SAC of the same width."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["width"], row["row"]), []).append(row)
    speed = {
        key: median(float(row["steps_per_second"]) for row in group)
        for key, group in groups.items()
    }
    parts = ("replay", "target", "critic", "actor")
    lines = [
        f"Gradient steps of SAC at batch {BATCH_SIZE}, {rows[0]['threads']} thread, torch "
        f"{rows[0]['torch']}, {rows[0]['cpu']}; medians of "
        f"{1 + max(int(row['repeat']) for row in rows)} repeats. Parts of a compiled row are "
        f"compiled one by one.",
        "",
        f"| | hidden layers | steps/s | SB3's SAC | ratio | {' | '.join(parts)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (width, name), group in groups.items():
        if name == "sb3-sac":
            continue
        peer = speed[width, "sb3-sac"]
        shares = [
            f"{100 * median(update_share(row, part) for row in group):.0f}%"
            if group[0][f"share_{part}"]
            else ""
            for part in parts
        ]
        lines.append(
            f"| {name} | {width}, {width} | {speed[width, name]:,.0f} | {peer:,.0f} | "
            f"{speed[width, name] / peer:.2f} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def update_share(row: dict[str, str], part: str) -> float:
    """Return the share of a part of an update, the critic's without that of its targets."""
    share = float(row[f"share_{part}"])
    return share - float(row["share_target"]) if part == "critic" else share


def solve_table(rows: list[dict[str, str]]) -> str:
    """Return median and range of the seconds of each agent."""
    lines = [
        f"Seconds of training until the last 100 episodes of CartPole-v1 average {THRESHOLD:.0f}, "
        f"{rows[0]['threads']} threads, {rows[0]['cpu']}.",
        "",
        "| | solved | seconds, median | each seed | steps, median |",
        "|---|---|---|---|---|",
    ]
    for agent in dict.fromkeys(row["agent"] for row in rows):
        group = [row for row in rows if row["agent"] == agent]
        seconds = [float(row["seconds"]) for row in group]
        solved = sum(row["solved"] == "True" for row in group)
        steps = median(int(row["timesteps"]) for row in group)
        lines.append(
            f"| {agent} | {solved} of {len(group)} | {median(seconds):.1f} | "
            f"{', '.join(f'{value:.1f}' for value in seconds)} | {steps:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure every row at every size")
    run.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    run.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    run.add_argument("--repeats", type=int, default=3)
    run.add_argument("--threads", type=int, default=2)
    updates = verbs.add_parser("updates", help="measure gradient steps of SAC")
    updates.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    updates.add_argument("--repeats", type=int, default=3)
    updates.add_argument("--threads", type=int, default=1)
    timed = verbs.add_parser("solve", help="measure the seconds to a solved CartPole-v1")
    timed.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    timed.add_argument("--threads", type=int, default=1)
    verbs.add_parser("table", help="print the tables")
    row = verbs.add_parser("row", help="measure one row in this process")
    row.add_argument("name", choices=[*ROWS, *UPDATE_ROWS])
    row.add_argument("size", type=int)
    row.add_argument("threads", type=int)
    one = verbs.add_parser("solve-one", help="time one seed in this process")
    one.add_argument("agent")
    one.add_argument("seed", type=int)
    one.add_argument("threads", type=int)
    args = parser.parse_args()
    if args.verb == "run":
        run_all(args)
    elif args.verb == "updates":
        run_updates(args)
    elif args.verb == "solve":
        solve(args)
    elif args.verb == "row":
        print(json.dumps(measure(args.name, args.size, args.threads)))
    elif args.verb == "solve-one":
        print(json.dumps(solve_one(args.agent, args.seed, args.threads)))
    else:
        print(tables())


if __name__ == "__main__":
    main()
