"""Films: the panel's numbers and bars, the episodes, the files, and `rl-gumbel record`."""

import re
import subprocess
import sys
from itertools import islice

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from stable_baselines3.common.env_util import make_vec_env

from rl_gumbel import BatchedPPO, GumbelREPPO, GumbelSAC, GumbelSHAC, SB3VecEnv, make_vec
from rl_gumbel.callbacks import evaluate_model
from rl_gumbel.cli import main
from rl_gumbel.envs import ENVS
from rl_gumbel.video.episodes import choose, film, find_fps, play
from rl_gumbel.video.files import encode_gif, write_mp4
from rl_gumbel.video.overlay import BLUE, ORANGE, WIDTH, Moment, draw

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


def make_moment(probs, index, sizes=None, size=(340, 340)):
    probs = np.array(probs)
    return Moment(
        frame=np.full((*size, 3), 90, np.uint8),
        probs=probs,
        allowed=probs > 0,
        sizes=sizes or [probs.shape[1]] * len(probs),
        index=np.array(index),
        value=1.0,
        episode=1,
        step=0,
        episode_return=0.0,
    )


def read_film(path):
    """Return by ffmpeg itself the frames `[T, height, width, 3]`, the rate and the codec."""
    words = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        path,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    done = subprocess.run(words, capture_output=True, check=True)
    codec, width, height, fps = re.search(
        r"Video: (\w+).*?, (\d+)x(\d+).*?, (\d+) fps", done.stderr.decode()
    ).groups()
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, int(height), int(width), 3)
    return frames, int(fps), codec


def heights(picture, color):
    """Return for each column of the panel's lower part how many pixels have a colour."""
    below = picture[118:, -WIDTH:]
    return (below == ImageColor.getrgb(color)).all(-1).sum(0)


# --- the panel ------------------------------------------------------------------------------------


def test_bars_are_as_high_as_the_probabilities_and_the_choice_is_orange():
    picture = draw(make_moment([[0.25, 0.5, 0.25]], [1]), [1.0])
    orange, blue = heights(picture, ORANGE).max(), heights(picture, BLUE).max()
    assert orange == pytest.approx(2 * blue, abs=2)
    assert orange > 80


def test_every_factor_has_its_bars():
    """Eight factors in two columns: over the panel's width there are two rows of bars apart."""
    one_hot = np.eye(4)[[0] * 8]
    picture = draw(make_moment(one_hot, [0] * 8), [1.0])
    columns = heights(picture, ORANGE) > 0
    starts = np.flatnonzero(np.diff(columns.astype(int)) == 1)
    assert len(starts) == 2


def test_padding_has_no_bar_but_a_forbidden_category_keeps_its_place():
    padded, whole = (draw(make_moment([[1.0, 0.0, 0.0]], [0], [n]), [1.0]) for n in (1, 3))
    widths = [int((heights(picture, ORANGE) > 0).sum()) for picture in (padded, whole)]
    assert widths[0] > 2.5 * widths[1]


@pytest.mark.parametrize(("factors", "categories"), [(1, 300), (3, 30), (24, 2), (64, 5), (200, 9)])
def test_any_number_of_factors_and_categories_fits(factors, categories):
    probs = np.eye(categories)[[0] * factors]
    picture = draw(make_moment(probs, [0] * factors), [1.0])
    assert heights(picture, ORANGE).sum() >= factors


@pytest.mark.parametrize("size", [(33, 17), (160, 160), (401, 333), (111, 592)])
def test_pictures_have_even_sides_and_hold_the_environment(size):
    picture = draw(make_moment([[1.0]], [0], size=size), [0.0, 1.0])
    height, width, _ = picture.shape
    assert (height % 2, width % 2) == (0, 0)
    assert (picture == 90).all(-1).sum() >= size[0] * size[1]


# --- episodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", sorted(ENVS))
def test_every_torch_environment_can_be_filmed(env_id):
    env = SB3VecEnv(make_vec(env_id, 1, "cpu"))
    env.seed(0)
    model = BatchedPPO("MlpPolicy", env, n_steps=8, **SMALL)
    frames = list(film(model, env, 1, fps=5, max_frames=2))
    assert len({frame.shape for frame in frames}) == 1
    assert len(frames) >= 1 + 3  # the last one stays
    assert frames[0].shape[1] > WIDTH
    assert frames[0].dtype == np.uint8


def test_gymnasium_environments_can_be_filmed():
    env = make_vec_env("Taxi-v4", 1, env_kwargs={"render_mode": "rgb_array"})
    env.seed(0)
    model = GumbelSAC("MlpPolicy", gym.make("Taxi-v4"), buffer_size=10, **SMALL)
    moments = list(zip(play(model, env, 1), range(3), strict=False))
    assert moments[0][0].frame.shape == env.render().shape
    assert find_fps(env, "Taxi-v4") == 4
    env.close()


def test_the_episodes_are_those_of_an_evaluation():
    env = SB3VecEnv(make_vec("CartPole-v1", 1, "cpu"))
    model = BatchedPPO("MlpPolicy", env, n_steps=8, **SMALL)
    env.seed(5)
    moments = list(play(model, env, 3))
    lengths = [sum(m.episode == number for m in moments) for number in (1, 2, 3)]
    env.seed(5)
    result = evaluate_model(model, env, 3)
    assert np.mean(lengths) == result.mean_ep_length
    assert [m.step for m in moments[: lengths[0]]] == list(range(lengths[0]))
    assert moments[lengths[0] - 1].episode_return == lengths[0] - 1
    assert moments[lengths[0]].episode_return == 0


def test_masks_hold_and_are_shown():
    env = SB3VecEnv(make_vec("Taxi-v4", 1, "cpu"))
    env.seed(1)
    model = BatchedPPO("MlpPolicy", env, n_steps=8, **SMALL)
    moments = [m for m, _ in zip(play(model, env, 1, deterministic=False), range(30), strict=False)]
    assert all(m.allowed[0, m.index[0]] for m in moments)
    assert all((m.probs[~m.allowed] == 0).all() for m in moments)
    assert any(not m.allowed.all() for m in moments)


def test_argmax_actions_leave_the_random_stream_alone():
    env = SB3VecEnv(make_vec("CartPole-v1", 1, "cpu"))
    model = BatchedPPO("MlpPolicy", env, n_steps=8, **SMALL)
    before = torch.get_rng_state()
    list(film(model, env, 1, fps=5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("algorithm", [BatchedPPO, GumbelSHAC, GumbelREPPO, GumbelSAC])
def test_the_value_is_the_critics(algorithm):
    model = algorithm("MlpPolicy", make_vec("CartPole-v1", 2, "cpu"), **SMALL)
    obs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    index, moment = choose(model.policy, obs, None, deterministic=True)
    tensor = torch.as_tensor(obs)
    one_hot = torch.eye(2)[index]
    with torch.no_grad():
        expected = {
            BatchedPPO: lambda p: p.predict_values(tensor)[0, 0],
            GumbelSHAC: lambda p: p.critic(tensor)[0],
            GumbelREPPO: lambda p: p.critic(tensor, one_hot)[:, 0].mean(),
            GumbelSAC: lambda p: p.critic(tensor, one_hot)[:, 0].mean(),
        }[algorithm](model.policy)
        probs = model.policy.distribution(tensor).probs[0]
    assert moment["value"] == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(moment["probs"], probs)
    np.testing.assert_array_equal(moment["index"], probs.argmax(-1))


# --- files ----------------------------------------------------------------------------------------


def make_frames(count):
    """Return pictures of one shade each."""
    return [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(count)]


def test_mp4_holds_every_frame_in_order(tmp_path):
    path = tmp_path / "film.mp4"
    assert write_mp4(path, make_frames(10), fps=5) == 10
    frames, fps, codec = read_film(path)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), np.arange(10) * 20, atol=4)
    assert (fps, frames.shape[1:3], codec) == (5, (48, 64), "h264")
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_a_film_that_breaks_off_leaves_no_file(tmp_path):
    def frames():
        yield from make_frames(2)
        raise RuntimeError("the environment failed")

    with pytest.raises(RuntimeError, match="failed"):
        write_mp4(tmp_path / "film.mp4", frames(), fps=5)
    with pytest.raises(RuntimeError, match="failed"):
        write_mp4(tmp_path / "new" / "film.mp4", islice(frames(), 2, None), fps=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "count", "duration"), [(5, 10, 200), (30, 5, 60)])
def test_gif_keeps_the_speed_and_at_most_fifteen_frames_a_second(tmp_path, fps, count, duration):
    (tmp_path / "film.gif").write_bytes(encode_gif(make_frames(10), fps, scale=2))
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.size, gif.n_frames) == ((32, 24), count)
        assert gif.info["duration"] == pytest.approx(duration, abs=10)
        assert gif.info["loop"] == 0


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    words = ["--total-timesteps=64", "--num-envs=4", "--algorithm.n-steps=8"]
    words += ["--algorithm.num-minibatches=1", "--policy-kwargs.net-arch=[4]", "--eval-episodes=1"]
    assert main(["train", "--algo=ppo", f"--run-dir={path}", *words]) == 0
    return path


def record(capsys, *words):
    code = main(["record", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_record_writes_a_film_into_the_run(run_dir, capsys):
    code, out, err = record(capsys, run_dir, "--episodes", 2, "--gif")
    film_path, gif_path = (run_dir / "videos" / f"last-64.{kind}" for kind in ("mp4", "gif"))
    assert (code, out.split()) == (0, [str(film_path), str(gif_path)])
    frames = int(err.split()[-2])
    pictures, fps, _ = read_film(film_path)
    assert pictures.shape == (frames, 400, 600 + WIDTH, 3)
    assert fps == 50  # of Gymnasium's CartPole
    with Image.open(gif_path) as gif:
        durations = []
        for number in range(gif.n_frames):
            gif.seek(number)  # a picture that stays is stored once
            durations.append(gif.info["duration"])
        assert sum(durations) == pytest.approx(1000 * frames / 50, abs=100)


def test_record_takes_the_best_model_a_name_and_a_speed(run_dir, tmp_path, capsys):
    path = tmp_path / "new" / "a.mp4"
    words = ("--model=best", "--fps=7", "--max-episode-steps=3", "--stochastic", "--out", path)
    code, out, _ = record(capsys, run_dir, *words)
    assert (code, out) == (0, f"{path}\n")
    frames, fps, _ = read_film(path)
    assert (len(frames), fps) == (3 + 4, 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["{run}", "--out", "a.avi"], "--out a.avi: must end in .mp4"),
        (["{run}", "--episodes", "0"], "must be an integer of at least 1"),
        (["{run}", "--model", "bst"], "did you mean best?"),
    ],
)
def test_mistakes_are_one_line(run_dir, capsys, words, message):
    code, _, err = record(capsys, *(word.format(run=run_dir) for word in words))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_environment_without_a_picture_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ENVS, "Unseen-v0", ("faulty_envs:FaultyTorch", {}))
    path = tmp_path / "run"
    words = ["--total-timesteps=16", "--num-envs=2", "--algorithm.n-steps=8", "--eval-episodes=1"]
    words += ["--algorithm.num-minibatches=1"]
    main(["train", "--algo=ppo", "--env=Unseen-v0", f"--run-dir={path}", *words])
    capsys.readouterr()
    code, _, err = record(capsys, path)
    assert code == 2
    assert "Unseen-v0 cannot be rendered" in err
    assert not (path / "videos").exists()


def test_without_ffmpeg_record_names_the_extra(run_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, _, err = record(capsys, run_dir)
    assert code == 2
    assert 'pip install "rl-gumbel[video]"' in err
