"""`rl-gumbel plot`: runs of every kind to curves, groups, figures and the numbers drawn."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import ResultsWriter

from rl_gumbel.cli import main
from rl_gumbel.plots.compare import align, compare
from rl_gumbel.plots.read import find_runs, moving_mean, read_run

RETURN = "rollout/ep_rew_mean"


def make_run(path, values, *, algo="sac", env="CartPole-v1", seed=0, by=10, **settings):
    """Write what train writes of a run."""
    path.mkdir(parents=True)
    config = {"env": env, "algo": algo, "seed": seed, "algorithm": settings}
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    with (path / "progress.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["time/total_timesteps", RETURN, "train/loss"])
        rows.writerows([(i + 1) * by, value, ""] for i, value in enumerate(values))
    return path


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plot(capsys, *words):
    code = main(["plot", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- reading --------------------------------------------------------------------------------------


def test_our_run_is_read_from_its_csv(tmp_path):
    run = read_run(make_run(tmp_path / "a", [1.0, 2.5], seed=3))
    np.testing.assert_array_equal([run.steps, run.values], [[10, 20], [1.0, 2.5]])
    assert run.task == "CartPole-v1"
    assert run.config["seed"] == 3


def test_a_row_that_is_written_twice_counts_once_and_half_a_row_not_at_all(tmp_path):
    path = make_run(tmp_path / "a", [1.0, 2.0])
    with (path / "progress.csv").open("a") as file:
        file.write("20,7.0,\n30,")  # a resume from step 10, and a kill
    np.testing.assert_array_equal(read_run(path).values, [1.0, 7.0])


def test_environment_arguments_belong_to_the_task(tmp_path):
    path = make_run(tmp_path / "a", [1.0])
    config = {"env": "FrozenLake-v1", "algo": "ppo", "env_kwargs": {"is_slippery": False}}
    (path / "config.yaml").write_text(json.dumps(config))
    assert read_run(path).task == "FrozenLake-v1 (is_slippery=False)"


def test_monitors_of_a_run_are_one_curve_in_the_order_of_time(tmp_path):
    """SB3's own writer; two environments, whose episodes interleave."""
    for name, start, episodes in (
        ("0", 100.0, [(1.0, 5, 1.0), (3.0, 5, 3.0)]),
        ("1", 100.5, [(2.0, 7, 1.0)]),
    ):
        header = {"t_start": start, "env_id": "CartPole-v1"}
        writer = ResultsWriter(str(tmp_path / "PPO_1" / name), header=header)
        for r, length, t in episodes:
            writer.write_row({"r": r, "l": length, "t": t})
        writer.close()
    run = read_run(tmp_path / "PPO_1")
    np.testing.assert_array_equal(run.steps, [5, 12, 17])
    np.testing.assert_array_equal(run.values, [1.0, 1.5, 2.0])
    assert (run.task, run.name) == ("CartPole-v1", "PPO")


def test_moving_mean_is_over_the_last_hundred():
    values = np.arange(150.0)
    expected = [values[max(0, i - 99) : i + 1].mean() for i in range(150)]
    np.testing.assert_allclose(moving_mean(values), expected)


def test_event_files_are_read_as_sb3_writes_them(tmp_path):
    logger = configure(str(tmp_path / "A2C_2"), ["tensorboard"])
    for step, value in ((100, 1.5), (200, 2.5)):
        logger.record(RETURN, value)
        logger.dump(step)
    logger.close()
    for path in (tmp_path / "A2C_2", next((tmp_path / "A2C_2").iterdir())):
        run = read_run(path)
        np.testing.assert_array_equal([run.steps, run.values], [[100, 200], [1.5, 2.5]])
        assert (run.task, run.name) == (None, "A2C")


def test_runs_are_found_below_a_path_each_once(tmp_path):
    first, second = (make_run(tmp_path / "deep" / name / "r", [1.0]) for name in "ab")
    assert find_runs([tmp_path, first]) == [first, second]


# --- groups ---------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    specs = [(0, 0.5), (1, 0.5), (0, 1.0)]
    paths = [
        make_run(tmp_path / str(i), [i], seed=s, temperature=t) for i, (s, t) in enumerate(specs)
    ]
    found = compare([read_run(path) for path in paths])
    groups = {method: len(runs) for (_, method), runs in found.runs.items()}
    assert groups == {"sac, temperature 0.5": 2, "sac, temperature 1.0": 1}


def test_a_log_without_environment_joins_the_only_one(tmp_path):
    logger = configure(str(tmp_path / "DQN_1"), ["csv"])
    logger.record(RETURN, 1.0)
    logger.record("time/total_timesteps", 10)
    logger.dump(10)
    logger.close()
    paths = [make_run(tmp_path / "ours", [1.0]), tmp_path / "DQN_1"]
    found = compare([read_run(path) for path in paths])
    assert list(found.runs) == [("CartPole-v1", "sac"), ("CartPole-v1", "DQN")]


def test_scores_of_several_tasks_are_fractions_of_each_range(tmp_path):
    values = {("sac", "A-v0"): [10, 30], ("ppo", "A-v0"): [50], ("sac", "B-v0"): [-1]}
    values[("ppo", "B-v0")] = [-3]
    runs = [
        read_run(make_run(tmp_path / f"{algo}{env}{i}", [v], algo=algo, env=env, seed=i))
        for (algo, env), last in values.items()
        for i, v in enumerate(last)
    ]
    found = compare(runs)
    assert [s.tolist() for s in found.scores("sac")] == [[0.0, 0.5], [1.0]]
    assert [s.tolist() for s in found.scores("ppo")] == [[1.0], [0.0]]


def test_curves_are_interpolated_where_every_run_has_values(tmp_path):
    a = read_run(make_run(tmp_path / "a", [0.0, 1.0, 2.0], by=10))
    b = read_run(make_run(tmp_path / "b", [5.0, 5.0], by=20))
    steps, values = align([a, b])
    assert (steps[0], steps[-1]) == (20, 30)
    np.testing.assert_allclose(values, [(steps - 10) / 10, np.full(len(steps), 5.0)])


def test_runs_that_do_not_overlap_are_named(tmp_path):
    early = read_run(make_run(tmp_path / "early", [0.0], by=1))
    late = read_run(make_run(tmp_path / "late", [0.0], by=100))
    with pytest.raises(ValueError, match=r"early ends at step 1, before another .* at 100"):
        align([early, late])


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Two seeds of one algorithm, one of another."""
    make_run(tmp_path / "runs" / "0", [0.0, 10.0, 20.0])
    make_run(tmp_path / "runs" / "1", [2.0, 12.0, 30.0], seed=1)
    make_run(tmp_path / "runs" / "2", [5.0, 5.0, 5.0], algo="ppo")
    return tmp_path / "runs"


def test_plot_writes_every_figure_as_png_svg_and_csv(three, tmp_path, capsys):
    code, out, _ = plot(capsys, three, "--out", tmp_path / "out", "--threshold", "11")
    names = {"curves", "scores", "profile", "improvement", "threshold"}
    kinds = {"png", "svg", "csv"}
    assert code == 0
    expected = {f"{name}.{kind}" for name in names for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert {line.split("/")[-1].split(".")[0] for line in out.splitlines()} == names
    for name in names:
        assert imread(tmp_path / "out" / f"{name}.png").std() > 0.01
        assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()


def test_the_csv_files_hold_what_is_drawn(three, tmp_path, capsys):
    options = ("--threshold", "11", "--statistic", "mean")
    plot(capsys, three, "--out", tmp_path / "out", *options)
    read = {p.stem: read_csv(p) for p in (tmp_path / "out").glob("*.csv")}
    sac = [row for row in read["curves"] if row["method"] == "sac"]
    assert [float(sac[i]["mean"]) for i in (0, -1)] == [1.0, 25.0]
    assert (sac[-1]["steps"], sac[-1]["runs"]) == ("30", "2")
    assert (float(sac[-1]["low"]), float(sac[-1]["high"])) == (20.0, 30.0)
    assert [row["steps"] for row in read["threshold"]] == ["30", "20", ""]
    assert [float(row["mean"]) for row in read["scores"]] == [25.0, 5.0]
    assert [row["probability"] for row in read["improvement"]] == ["1.0"]
    above = {
        row["method"]: float(row["share"]) for row in read["profile"] if float(row["score"]) < 19
    }
    assert above == {"sac": 1.0, "ppo": 0.0}


def test_unequal_budgets_are_said(three, tmp_path, capsys):
    assert plot(capsys, three, "--out", tmp_path / "out")[2] == ""
    make_run(three / "3", [1.0, 2.0], seed=2)
    code, _, err = plot(capsys, three, "--out", tmp_path / "out")
    expected = "runs on CartPole-v1 end at steps 20 to 30: last values are of unequal budgets\n"
    assert (code, err) == (0, expected)


def test_by_groups_runs_by_the_values_of_a_setting(tmp_path, capsys):
    for i, temperature in enumerate((0.5, 0.5, 1.0)):
        make_run(tmp_path / "runs" / str(i), [i], algo=f"a{i}", temperature=temperature)
    out = tmp_path / "out"
    code, _, _ = plot(capsys, tmp_path / "runs", "--out", out, "--by", "algorithm.temperature")
    assert code == 0
    groups = {row["method"]: row["runs"] for row in read_csv(out / "scores.csv")}
    assert groups == {"temperature 0.5": "2", "temperature 1.0": "1"}


def test_the_same_runs_make_the_same_files(three, tmp_path, capsys):
    for name in "ab":
        plot(capsys, three, "--out", tmp_path / name)
    for path in (tmp_path / "a").glob("*.[sc]*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such file"),
        (["{tmp}/empty"], "no config.yaml, progress.csv"),
        (["{tmp}/runs", "--metric", "rollout/ep_rew"], "did you mean rollout/ep_rew_mean?"),
        (["{tmp}/runs", "--by", "algorithm.tau"], "has no setting 'algorithm.tau'"),
        (["{tmp}/runs", "--threshold", "high"], "--threshold: must be a number, got 'high'"),
        (["{tmp}/runs", "--statistic", "iqr"], "must be one of iqm, mean, got 'iqr'; did you mean"),
        (["{tmp}/text"], "is neither a monitor.csv nor an event file"),
        (["{tmp}/broken"], "config.yaml cannot be read"),
        ([], "required: RUNS"),
    ],
)
def test_mistakes_are_one_line(three, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no events")
    make_run(tmp_path / "broken", [1.0])
    (tmp_path / "broken" / "config.yaml").write_text("a: [")
    code, out, err = plot(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_in_place_of_the_directory_is_named(three, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    code, _, err = plot(capsys, three, "--out", tmp_path / "out")
    assert code == 5
    assert f"cannot write {tmp_path / 'out'}" in err


def test_without_matplotlib_plot_names_the_extra(three, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = plot(capsys, three)
    assert code == 2
    assert err == (
        "rl-gumbel: the package 'matplotlib' is not installed: pip install \"rl-gumbel[plot]\"\n"
    )


def test_plot_does_not_wait_for_torch(three, tmp_path):
    code = (
        "import sys; from rl_gumbel.cli import main; "
        f"code = main(['plot', {str(three)!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "print(code, sorted({'torch', 'gymnasium', 'stable_baselines3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
