"""Discrete codes of a MinAtar game: training on hard codes against soft ones, and pictures.

    python benchmarks/codes.py run
    python benchmarks/codes.py draw

`run` plays the game at random, trains `GumbelCodes` on the observations with a hard estimator and
with the relaxed one over temperatures, and `GaussianCodes` beside them; it writes
`results/codes.csv` (losses on held-out observations, as the decoder gets codes in training and as
it gets them in use) and what `draw` needs for the pictures, `results/codes.npz`. `draw` writes
`results/codes.png`.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import SubFigure
from matplotlib.ticker import NullLocator
from torch import Tensor

from rl_gumbel import GaussianCodes, GumbelCodes, make_vec, pretrain_codes
from rl_gumbel.codes import Codes
from rl_gumbel.envs.minatar.base import BACKGROUND, PALETTE

RESULTS = Path(__file__).parent / "results"
HARD, SOFT, GAUSSIAN = "straight_through_gumbel", "gumbel_softmax", "gaussian"
TEMPERATURES = (0.2, 0.5, 1.0, 2.0, 4.0)
SHOWN = ((HARD, 1.0), (SOFT, 1.0), (SOFT, 4.0), (GAUSSIAN, math.nan))
"""Codes whose pictures are drawn, and temperatures."""
KEYS = [f"{name} {temperature:g}" for name, temperature in SHOWN]
LABELS = {HARD: "hard", SOFT: "soft", GAUSSIAN: "Gaussian VAE"}
COLORS = {HARD: "#d95f02", SOFT: "#7570b3", GAUSSIAN: "#1b9e77"}
COLUMNS = (
    "game",
    "codes",
    "temperature",
    "seed",
    "updates",
    "loss_in_training",
    "loss_in_use",
    "gap",
    "kl",
    "perplexity",
    "mean_image_loss",
)
NUM_SHOWN = 6


def play(game: str, seed: int, num_steps: int, num_envs: int = 32) -> Tensor:
    """Return `[num_steps * num_envs, 10, 10, C]` observations of random play, every third step."""
    env = make_vec(f"MinAtar/{game}-v1", num_envs, "cpu")
    obs, rows = env.reset(seed), []
    generator = torch.Generator().manual_seed(seed)
    for step in range(3 * num_steps):
        action = torch.randint(int(env.action_space.n), (num_envs,), generator=generator)
        obs = env.step(action).obs
        if step % 3 == 0:
            rows.append(obs)
    return torch.cat(rows)


def make_codes(name: str, temperature: float, game: str) -> Codes:
    """Return codes of 16 factors with 16 categories, or of 32 numbers."""
    space = make_vec(f"MinAtar/{game}-v1", 1, "cpu").observation_space
    if name == GAUSSIAN:
        return GaussianCodes(space)
    return GumbelCodes(space, estimator=name, temperature=temperature)


@torch.no_grad()
def measure(codes: Codes, obs: Tensor) -> dict[str, float]:
    """Return held-out losses, in nats an observation: codes drawn as in training, and as in use."""
    codes.train()
    drawn = [codes.measure(obs)["codes/reconstruction_loss"].item() for _ in range(5)]
    codes.eval()
    used = codes.measure(obs)
    in_training, in_use = mean(drawn), used["codes/reconstruction_loss"].item()
    perplexity = used.get("codes/perplexity")
    return {
        "loss_in_training": in_training,
        "loss_in_use": in_use,
        "gap": in_use - in_training,
        "kl": used["codes/kl"].item(),
        "perplexity": float("nan") if perplexity is None else perplexity.item(),
    }


def mean_image_loss(train: Tensor, test: Tensor) -> float:
    """Return the loss of the training set's mean image, the best without a code."""
    image = train.float().mean(0).clamp(1e-4, 1 - 1e-4)
    target = test.float()
    loss = torch.nn.functional.binary_cross_entropy(
        image.expand_as(target), target, reduction="sum"
    )
    return loss.item() / len(test)


def plan(seeds: int) -> Iterator[tuple[str, float, int]]:
    """Return what is trained: estimator, temperature and seed."""
    for seed in range(seeds):
        yield GAUSSIAN, float("nan"), seed
        for temperature in TEMPERATURES:
            for name in (HARD, SOFT):
                yield name, temperature, seed


def run(game: str, seeds: int, updates: int) -> None:
    """Train all, write `codes.csv` and `codes.npz`."""
    train, test = play(game, 0, 400), play(game, 1, 64)
    baseline = mean_image_loss(train, test)
    shown = test[torch.linspace(0, len(test) - 1, NUM_SHOWN).long()]
    pictures: dict[str, np.ndarray] = {"original": shown.numpy()}
    with (RESULTS / "codes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, temperature, seed in plan(seeds):
            torch.manual_seed(seed)
            codes = make_codes(name, temperature, game)
            pretrain_codes(codes, train, num_updates=updates, batch_size=64, learning_rate=2e-3)
            row = {
                "game": game,
                "codes": name,
                "temperature": temperature,
                "seed": seed,
                "updates": updates,
                **measure(codes, test.float()),
                "mean_image_loss": baseline,
            }
            shown_row = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}
            writer.writerow(shown_row)
            file.flush()
            print(*shown_row.values(), flush=True)
            key = f"{name} {temperature:g}"
            if seed == 0 and key in KEYS:
                pictures |= picture(codes, key, shown, test)
                np.savez_compressed(RESULTS / "codes.npz", **pictures)


@torch.no_grad()
def picture(codes: Codes, key: str, shown: Tensor, test: Tensor) -> dict[str, np.ndarray]:
    """Return reconstructions, and the codes and their usage where they are discrete."""
    found = {key: codes.reconstruct(shown.float()).numpy()}
    if isinstance(codes, GumbelCodes):
        one_hot = codes.draw(codes.infer(test.float()), sample=False)
        found[f"{key}/usage"] = one_hot.mean(0).numpy()
        found[f"{key}/codes"] = codes.codes(shown.float()).numpy()
    return found


# --- figure -------------------------------------------------------------------------------------


def paint(grid: np.ndarray) -> np.ndarray:
    """Return `[10, 10, 3]` colours of `[10, 10, C]` probabilities, each channel over the next."""
    palette = np.array([*PALETTE[: grid.shape[-1]], BACKGROUND]) / 255
    color = np.broadcast_to(palette[-1], (*grid.shape[:2], 3))
    for channel in reversed(range(grid.shape[-1])):
        share = grid[..., channel, None]  # as opaque as it is probable
        color = share * palette[channel] + (1 - share) * color
    return color


def draw_pictures(figure: SubFigure, data: dict[str, np.ndarray]) -> None:
    """Draw held-out observations and what each autoencoder makes of them."""
    lines = figure.subplots(1 + len(KEYS), NUM_SHOWN)
    for line, key in zip(lines, ["original", *KEYS], strict=True):
        for axes, image in zip(line, data[key], strict=True):
            axes.imshow(paint(image), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        name, _, temperature = key.partition(" ")
        label = LABELS.get(name, "observation")
        if name in (HARD, SOFT):
            label += f"\n({name},\ntemperature {temperature})"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for number, axes in enumerate(lines[0], 1):
        axes.set_title(number, fontsize=10)
    figure.suptitle("Held-out observations and their reconstructions in use")


def draw_codes(axes: Axes, codes: np.ndarray) -> None:
    """Draw the category of each factor for the observations that are shown."""
    axes.imshow(codes.T, cmap="tab20", vmin=0, vmax=19, aspect="auto")
    for (number, factor), category in np.ndenumerate(codes):
        axes.text(number, factor, category, ha="center", va="center", fontsize=7)
    axes.set_xticks(range(NUM_SHOWN), range(1, NUM_SHOWN + 1))
    axes.set(xlabel="observation", ylabel="factor", yticks=[])
    axes.set_title("Their codes (hard):\ncategory of each factor", fontsize=10)


def draw_usage(axes: Axes, usage: np.ndarray) -> None:
    """Draw how often each factor takes each category, the most frequent first."""
    ordered = -np.sort(-usage, 1)
    image = axes.imshow(ordered, cmap="viridis", norm=LogNorm(1e-3, 1), aspect="auto")
    entropy = -(usage * np.log(np.maximum(usage, 1e-12))).sum(1)
    axes.set_yticks(range(len(usage)), [f"{x:.1f}" for x in np.exp(entropy)], fontsize=7)
    axes.set_xticks(range(0, usage.shape[1], 5), range(1, usage.shape[1] + 1, 5))
    axes.set(xlabel="category, most used first", ylabel="factor, by its perplexity")
    axes.set_title(
        "Usage of the codebook (hard),\nall held-out observations; white: never", fontsize=10
    )
    axes.figure.colorbar(image, ax=axes, label="share of observations")


def draw_gap(axes: Axes, rows: list[dict[str, str]]) -> None:
    """Draw both losses over temperature; points are seeds, lines their means."""
    uses = (
        ("loss_in_training", "--", "drawn code, as the decoder trains"),
        ("loss_in_use", "-", "argmax code, as it is used"),
    )
    for name in (HARD, SOFT):
        group = [row for row in rows if row["codes"] == name]
        for column, style, label in uses:
            points = [(float(row["temperature"]), float(row[column])) for row in group]
            means = [mean(y for x, y in points if x == t) for t in TEMPERATURES]
            axes.plot(
                TEMPERATURES,
                means,
                style,
                color=COLORS[name],
                label=f"{LABELS[name]}: {label}",
            )
            axes.scatter(*zip(*points, strict=True), s=10, color=COLORS[name])
    gaussian = mean(float(row["loss_in_use"]) for row in rows if row["codes"] == GAUSSIAN)
    axes.axhline(gaussian, color=COLORS[GAUSSIAN], label="Gaussian VAE: mean, as it is used")
    axes.axhline(float(rows[0]["mean_image_loss"]), color="0.5", ls=":", label="mean image")
    axes.set(xscale="log", yscale="log", xlabel="temperature")
    axes.set_ylabel("held-out reconstruction loss, nats")
    axes.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.minorticks_on()
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.95))
    axes.set_title("What the decoder sees in training and in use", fontsize=10)


def draw() -> None:
    """Write `codes.png`."""
    with (RESULTS / "codes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = dict(np.load(RESULTS / "codes.npz"))
    figure = plt.figure(figsize=(16, 7.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    draw_pictures(left, data)
    above, below = right.subfigures(2, 1)
    draw_gap(above.subplots(), rows)
    codes, usage = below.subplots(1, 2, width_ratios=(0.8, 1.2))
    draw_codes(codes, data[f"{KEYS[0]}/codes"])
    draw_usage(usage, data[f"{KEYS[0]}/usage"])
    figure.savefig(RESULTS / "codes.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "draw"))
    parser.add_argument("--game", default="SpaceInvaders")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1200)
    args = parser.parse_args()
    if args.what == "run":
        run(args.game, args.seeds, args.updates)
    else:
        draw()
