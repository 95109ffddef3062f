"""`rl-gumbel lab` as its user meets it: files, the table of a run, and what it refuses."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from rl_gumbel.algorithms.objective import PROBE_BATCH_SIZE, PROBE_DRAWS
from rl_gumbel.checkpoint import load_model
from rl_gumbel.cli import main
from rl_gumbel.cli.lab import advice
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.lab import polynomial, sweep
from rl_gumbel.lab.measure import Method
from rl_gumbel.lab.on_run import (
    EXACT,
    BatchGradient,
    Result,
    candidates,
    measure_run,
    recommend,
)

QUICK = [
    "--total-timesteps=60",
    "--eval-freq=30",
    "--eval-episodes=2",
    "--policy-kwargs.net-arch=[8]",
]
SAC = [*QUICK, "--algorithm.learning-starts=20", "--algorithm.batch-size=4"]
FACTORED = ["--env=PendulumBank-v0", "--env-kwargs.n=3"]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Every command runs in an empty directory, as a new user's."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Experiments of the least size that a figure can be drawn of."""
    monkeypatch.setattr(sweep, "TEMPERATURES", (0.1, 1.0))
    monkeypatch.setattr(sweep, "FACTOR_COUNTS", (1, 2))
    monkeypatch.setattr(sweep, "CATEGORY_COUNTS", (2, 3))
    monkeypatch.setattr(sweep, "SHARPNESSES", (1.0, 2.0))
    monkeypatch.setattr(sweep, "INSTANCES", 3)
    monkeypatch.setattr(sweep, "COST_BATCH", 8)
    monkeypatch.setattr(sweep, "FIT_STEPS", 5)
    monkeypatch.setattr(polynomial, "STEPS", 10)


@pytest.fixture
def call(capsys):
    """Run a command line; return its exit code, output and errors."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_every_experiment_writes_a_table_and_a_figure(call):
    code, out, err = call("lab", "--draws", 16)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == [
        "temperature", "factors", "categories", "sharpness", "shapes", "cost", "polynomial",
    ]  # fmt: skip
    assert {path.name for path in Path("lab").iterdir()} == {
        f"{name}.{end}" for name in names for end in ("csv", "png")
    }
    for name in names:
        rows = read_csv(f"lab/{name}.csv")
        assert {row["experiment"] for row in rows} == {name}
        assert size_of(f"lab/{name}.png") > (500, 300)
    assert float(read_csv("lab/cost.csv")[0]["microseconds"]) > 0
    assert {row["objective"] for row in read_csv("lab/shapes.csv")} > {"critic multilinear"}


def test_the_default_directory_is_new_each_time(call):
    for directory in ("lab", "lab-2"):
        code, out, _ = call("lab", "--only", "sharpness", "--draws", 1)
        assert code == 0
        assert out.endswith(f"{directory}/sharpness.csv, .png\n")
    one, two = (Path(d, "sharpness.csv").read_text() for d in ("lab", "lab-2"))
    assert one == two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "factor"], r"must be one of .*, got 'factor'; did you mean factors\?"),
        (["--draws", "0"], r"--draws: must be an integer of at least 1, got '0'"),
        (["--states", "5"], r"--states would be ignored: it is an option of --run"),
        (["--model", "best"], r"--model would be ignored"),
        (["--run", "x", "--only", "cost"], r"--only would be ignored"),
        (["--run", "x", "--states", "5000"], r"--states 5000: must be at most 4096"),
        (["--run", "missing"], r"missing is not a run directory"),
        (["--out", "full"], r"--out full is not empty"),
        (["--out", "full/file"], r"--out full/file is a file"),
        (["--drws", "5"], r"unknown argument --drws; did you mean --draws\?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(call, words, message):
    Path("full").mkdir()
    Path("full/file").touch()
    code, out, err = call("lab", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)
    assert [str(path) for path in Path().rglob("*")] == ["full", "full/file"]


def test_without_matplotlib_it_says_how_to_get_it(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call("lab")
    assert (code, out) == (2, "")
    assert 'pip install "rl-gumbel[plot]"' in err and err.count("\n") == 1
    assert list(Path().iterdir()) == []


LIGHT = """
import sys
from rl_gumbel.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "gymnasium", "stable_baselines3", "numpy", "rich", "matplotlib"}
print(code, sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--states", "5"], 2)])
def test_help_and_a_refused_option_import_nothing_heavy(words, code):
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "lab", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_tab_completion_knows_the_experiments(capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    assert "factors categories sharpness" in capsys.readouterr().out.replace("'", "")


# --- on a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reference"),
    [
        ([*SAC, "--algorithm.critic=concat"], "enumeration of 2 joint actions"),
        (
            [*SAC, *FACTORED, "--algorithm.critic=multilinear", "--algorithm.estimator=reinmax"],
            "closed form: the critic at the probabilities",
        ),
        (
            [*QUICK, "--env=Taxi-v4", "--algo=reppo", "--num-envs=4", "--algorithm.n-steps=5",
             "--algorithm.num-minibatches=2", "--algorithm.actor-gradient=exact",
             "--algorithm.critic=concat"],
            "enumeration of 6 joint actions",
        ),
    ],
)  # fmt: skip
def test_a_run_is_measured_on_its_own_critic(call, words, reference):
    """One factor; several; masks, and an actor that sums over actions."""
    assert call("train", *words, "--run-dir", "run")[0] == 0
    code, out, err = call("lab", "--run", "run", "--states", 20, "--draws", 16)
    assert (code, err) == (0, "")
    assert reference in out
    table = [line for line in out.splitlines() if line.startswith(tuple(ESTIMATORS))]
    assert len(table) > 20
    assert max(map(len, table)) <= 80
    rows = read_csv("run/lab/run.csv")
    assert {row["reference"] for row in rows} == {reference}
    assert {row["states"] for row in rows} == {"20"}
    (trained,) = [row for row in rows if row["trains"] == "True"]
    (best,) = [row for row in rows if row["recommended"] == "True"]
    assert trained["method"] in ("straight_through_gumbel", "reinmax", "exact")
    cosines = [float(row["cosine"]) for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    assert f"recommended: {'what this run has' if best is trained else best['method']}" in out
    assert size_of("run/lab/run.png") > (500, 300)


def test_a_run_without_a_critic_of_actions_is_refused(call):
    words = ["--algo=ppo", "--num-envs=4", "--algorithm.n-steps=10"]
    assert call("train", *QUICK, *words, "--run-dir", "run")[0] == 0
    code, _, err = call("lab", "--run", "run")
    assert code == 2
    assert "run is a run of ppo, which has no critic of actions" in err
    assert not Path("run/lab").exists()


def test_gradients_of_a_run_are_those_that_training_logs(call):
    """The same numbers as `estimator/cosine` and `estimator/variance`, on the same noise."""
    assert call("train", *SAC, *FACTORED, "--run-dir", "run")[0] == 0
    model = load_model("run/models/last", device="cpu")
    obs = torch.randn(PROBE_BATCH_SIZE, *model.observation_space.shape)
    gradient = BatchGradient(model.policy, obs, None)
    method = Method("straight_through_gumbel", 0.7)
    torch.manual_seed(5)
    mine = gradient.sample(method, PROBE_DRAWS).squeeze(1)
    exact = gradient(EXACT)
    model.objective.estimator = method.name
    torch.manual_seed(5)
    theirs = model.objective.probe(model.actor, model.critic, obs, None, 0.7)
    cosine = torch.nn.functional.cosine_similarity(mine, exact, dim=-1).mean()
    torch.testing.assert_close(cosine, theirs["estimator/cosine"])
    variance = mine.var(0).sum() / exact.square().sum()
    torch.testing.assert_close(variance, theirs["estimator/variance"])


def test_the_mean_of_the_ensemble_is_measured_where_the_actor_climbs_it(call):
    """The exact gradient of the mean is the mean of the members' gradients; of the minimum not."""
    assert call("train", *SAC, "--algorithm.critic=concat", "--run-dir", "run")[0] == 0
    model = load_model("run/models/last", device="cpu")
    obs = torch.randn(9, *model.observation_space.shape)
    policy = model.policy.distribution(obs)
    values = model.critic(obs.repeat(2, 1), torch.eye(2).repeat_interleave(9, 0).unsqueeze(1))
    expected = (policy.probs.squeeze(1).T * values.detach().mean(0).unflatten(0, (2, 9))).sum(0)
    weights = list(model.actor.parameters())
    mean = torch.cat([g.flatten() for g in torch.autograd.grad(expected.mean(), weights)])
    torch.testing.assert_close(BatchGradient(model.policy, obs, None, use_mean=True)(EXACT), mean)
    assert not torch.allclose(BatchGradient(model.policy, obs, None)(EXACT), mean)


def test_straight_through_is_found_for_a_multilinear_critic(call):
    """It is unbiased there, and the run's own estimator is not."""
    words = ["--algorithm.critic=multilinear", "--algorithm.estimator=straight_through_gumbel"]
    assert call("train", *SAC, *FACTORED, *words, "--run-dir", "run")[0] == 0
    model = load_model("run/models/last", device="cpu")
    obs = torch.randn(30, *model.observation_space.shape)
    present = Method("straight_through_gumbel", 1.0)
    result = measure_run(BatchGradient(model.policy, obs, None), present, 64)
    assert result.best["method"] in ("straight_through", "probabilities")
    assert result.best["temperature"] == 1
    assert (result.present["method"], result.present["trains"]) == (present.name, True)
    assert result.best["cosine"] > result.present["cosine"]
    by_name = {(row["method"], row["temperature"]): row for row in result.rows}
    assert by_name["probabilities", 1.0]["mean_squared_error"] == pytest.approx(0, abs=1e-9)
    assert by_name["straight_through_gumbel", 1.0]["bias"] > 0.05


def row_of(method, cosine, se=0.01, trains=False, temperature=1.0):
    return {
        "method": method,
        "temperature": temperature,
        "cosine": cosine,
        "cosine_se": se,
        "microseconds": 100.0 * (1 + len(method)),
        "trains": trains,
    }


def test_a_run_keeps_what_it_has_unless_another_is_clearly_better():
    present = row_of("reinmax", 0.90, trains=True)
    close, better = row_of("straight_through", 0.945), row_of("straight_through", 0.96)
    assert recommend([close, present]) is present
    assert recommend([better, present]) is better
    baseline, alias = row_of("exact", 1.0), row_of("decoupled_straight_through", 1.0)
    assert recommend([baseline, alias, better, present]) is better
    assert recommend([row_of("exact", 1.0, trains=True), better])["method"] == "exact"


def test_the_recommendation_names_the_options():
    present = row_of("reinmax", 0.9, trains=True)
    best = row_of("straight_through", 0.95, temperature=0.5)
    text = advice(Result([best, present], best, present))
    assert text.splitlines() == [
        "recommended: straight_through at 0.5: cosine 0.950 +- 0.010"
        " (this run has reinmax at 1: cosine 0.900 +- 0.010)",
        "  --algorithm.actor-gradient estimator --algorithm.estimator straight_through"
        " --algorithm.temperature 0.5",
    ]
    assert "what this run has, reinmax at 1" in advice(Result([best, present], present, present))


def test_sums_over_actions_are_offered_beside_with_what_they_cost():
    present, local = row_of("reinmax", 0.9, trains=True), row_of("local_expectation", 0.99)
    local["temperature"] = None
    text = advice(Result([local, present], present, present))
    assert text.splitlines()[1:] == [
        "without an estimator: local_expectation: cosine 0.990 +- 0.010, in 2.2 times the time",
        "  --algorithm.actor-gradient local_expectation",
    ]


def test_a_recommended_relaxation_stands_beside_the_best_hard_one():
    """It asks the critic about actions that never occur, which no cosine of today shows."""
    relaxed, present = row_of("probabilities", 0.99), row_of("reinmax", 0.9, trains=True)
    alias, hard = row_of("decoupled_straight_through", 0.96), row_of("gumbel_rao", 0.95)
    text = advice(Result([relaxed, alias, hard, present], relaxed, present))
    assert "recommended: probabilities at 1" in text
    assert "with actions that are one-hot: gumbel_rao at 1: cosine 0.950" in text


def test_candidates_hold_every_estimator_and_what_the_run_has_once():
    present = Method("gumbel_rao", 0.7, (("num_samples", 3),))
    methods = candidates(present)
    assert len(set(methods)) == len(methods)
    assert methods[0] == present
    assert {method.name for method in methods} > {"straight_through", "reinmax", "exact"}
    assert all(m.temperature >= 1 for m in methods if m.name == "reinmax")
