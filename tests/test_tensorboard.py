"""What TensorBoard gets beside scalars, read back from event files and from its own server."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rl_gumbel import BatchedPPO, GumbelREPPO, GumbelSAC, GumbelSHAC, SB3VecEnv, make_vec
from rl_gumbel.cli import main
from rl_gumbel.envs import ENVS
from rl_gumbel.lab import on_run
from rl_gumbel.lab.callback import LabCallback
from rl_gumbel.logger import TAGS
from rl_gumbel.plots.events import read_histograms, read_scalars
from rl_gumbel.tensorboard import (
    ACTIONS,
    ENTROPY,
    LAYOUT,
    METRICS,
    TensorBoardCallback,
    add_heights,
    describe_policy,
    find_writer,
    recent_states,
)
from rl_gumbel.video.callback import TAG, VideoCallback

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)
SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
ON_POLICY = {
    BatchedPPO: {"n_steps": 8},
    GumbelREPPO: {"n_steps": 8},
    GumbelSHAC: {"n_steps": 8},
}


@pytest.fixture
def logger(tmp_path):
    logger = configure(str(tmp_path / "log"), ["tensorboard"])
    yield logger
    logger.close()


def read_all(path):
    """Return TensorBoard's own view of a directory, nothing left out."""
    events = EventAccumulator(str(path), {"tensors": 0, "images": 0, "histograms": 0})
    return events.Reload()


# --- what is written ------------------------------------------------------------------------------


def test_every_chart_of_the_layout_shows_tags_that_exist():
    tags = {tag for charts in LAYOUT.values() for _, names in charts.values() for tag in names}
    assert {tag for tag in tags if not tag.startswith("rollout/")} <= TAGS.keys()
    assert {tag for tag in METRICS if tag.startswith("eval/")} <= TAGS.keys()


def test_heights_are_read_back_exactly(logger, tmp_path):
    heights = np.array([0.125, 0.0, 0.875, 0.0])
    for step in (5, 9):
        add_heights(find_writer(logger), "a", heights, step)
    logger.close()
    steps, bins = read_histograms(tmp_path / "log")["a"]
    np.testing.assert_array_equal(steps, [5, 9])
    np.testing.assert_array_equal(bins[1, :, 2], heights)
    np.testing.assert_array_equal(bins[0, :, 0], [-0.5, 0.5, 1.5, 2.5])


@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_recent_states_are_those_of_the_end_of_the_rollout(algorithm):
    env = make_vec("CartPole-v1", 3, "cpu", gradients=algorithm is GumbelSHAC)
    model = algorithm("MlpPolicy", env, **ON_POLICY[algorithm], **SMALL)
    assert recent_states(model, 6) is None
    model.learn(24)
    obs, mask = recent_states(model, 6)
    assert mask is None
    assert torch.equal(obs, model.rollout.obs[6:8].flatten(0, 1).detach())
    assert len(recent_states(model, 1000)[0]) == 24


@pytest.mark.parametrize("batched", [True, False])
def test_recent_states_are_the_newest_of_a_replay_that_has_wrapped(batched):
    env = make_vec("CartPole-v1", 1, "cpu") if batched else gym.make("CartPole-v1")
    model = GumbelSAC("MlpPolicy", env, buffer_size=10, learning_starts=100, **SMALL)
    model.learn(13)
    obs, _ = recent_states(model, 5)
    buffer = model.replay_buffer
    assert buffer.pos == 3
    store = buffer.store["obs"] if batched else torch.as_tensor(buffer.observations)
    assert torch.equal(obs, store[[8, 9, 0, 1, 2], 0])


def test_masks_of_recent_states_come_along():
    model = BatchedPPO("MlpPolicy", make_vec("Taxi-v4", 2, "cpu"), n_steps=4, **SMALL)
    model.learn(8)
    obs, mask = recent_states(model, 4)
    assert torch.equal(mask, model.rollout.action_mask[2:4].flatten(0, 1))
    probs, entropy = describe_policy(model.policy, obs, mask)
    distribution = model.policy.distribution(obs, mask)
    np.testing.assert_allclose(probs, distribution.probs.mean(0).detach(), rtol=1e-6)
    most = mask.sum(-1).log().mean()
    expected = float(distribution.entropy().mean().detach() / most)
    assert entropy[0] == pytest.approx(expected, rel=1e-5)
    assert 0.9 < entropy[0] <= 1


def test_padding_does_not_count_as_entropy():
    """A uniform policy has the entropy 1 in each factor, whatever its size."""
    model = BatchedPPO("MlpPolicy", make_vec("ProbeFactors-v0", 2, "cpu"), n_steps=4, **SMALL)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
    obs = torch.zeros(3, *model.observation_space.shape)
    probs, entropy = describe_policy(model.policy, obs, None)
    np.testing.assert_allclose(entropy, [1, 1], rtol=1e-6)
    np.testing.assert_allclose(probs, [[1 / 3] * 3, [1 / 2, 1 / 2, 0]], rtol=1e-6)


def test_snapshots_come_a_hundred_times_and_at_the_end(logger, tmp_path):
    model = BatchedPPO("MlpPolicy", make_vec("PendulumBank-v0", 2, "cpu"), n_steps=4, **SMALL)
    model.set_logger(logger)
    model.learn(2400, callback=TensorBoardCallback({}, {}))
    logger.close()
    found = read_histograms(tmp_path / "log")
    names = {f"{ACTIONS}{k:02d}" for k in range(8)}
    assert names | {ENTROPY} <= found.keys()
    steps, bins = found[f"{ACTIONS}03"]
    assert steps.tolist() == [*range(8, 2400, 24), 2400]
    assert bins.shape[1] == 5
    np.testing.assert_allclose(bins[:, :, 2].sum(1), 1, rtol=1e-5)
    assert found[ENTROPY][1].shape[1] == 8


def test_layout_settings_and_texts_are_written(logger, tmp_path):
    model = BatchedPPO("MlpPolicy", make_vec("CartPole-v1", 2, "cpu"), n_steps=4, **SMALL)
    model.set_logger(logger)
    settings = {"algorithm.gamma": 0.9, "net": [4, 4], "env": "CartPole-v1", "none": None}
    model.learn(8, callback=TensorBoardCallback(settings, {"config": "    gamma: 0.9"}))
    logger.close()
    events = read_all(tmp_path / "log")
    layout = Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    charts = {c.title: {x.title: list(x.multiline.tag) for x in c.chart} for c in layout.category}
    assert charts == {c: {x: tags for x, (_, tags) in v.items()} for c, v in LAYOUT.items()}
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"    gamma: 0.9"
    start = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    values = {name: v.WhichOneof("kind") for name, v in start.session_start_info.hparams.items()}
    assert values == {
        "algorithm.gamma": "number_value",
        "net": "string_value",
        "env": "string_value",
    }
    assert "_hparams_/session_end_info" in events.Tags()["tensors"] or events.SummaryMetadata(
        "_hparams_/session_end_info"
    )


def test_without_tensorboard_nothing_happens(tmp_path):
    model = BatchedPPO("MlpPolicy", make_vec("CartPole-v1", 2, "cpu"), n_steps=4, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(8, callback=TensorBoardCallback({"a": 1}, {"b": "c"}))
    model.logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]


# --- clips ----------------------------------------------------------------------------------------


def learn(logger, callbacks, steps=64):
    model = BatchedPPO("MlpPolicy", make_vec("CartPole-v1", 4, "cpu"), n_steps=4, **SMALL)
    model.env.seed(0)
    if logger is not None:
        model.set_logger(logger)
    model.learn(steps, callback=callbacks)
    return model.policy.state_dict()


def test_clips_come_at_each_interval_and_are_animated(logger, tmp_path):
    film_env = SB3VecEnv(make_vec("CartPole-v1", 1, "cpu"))
    learn(logger, VideoCallback(film_env, 30, fps=10))
    logger.close()
    images = read_all(tmp_path / "log").Images(TAG)
    assert [image.step for image in images] == [32, 60]
    (tmp_path / "clip.gif").write_bytes(images[0].encoded_image_string)
    with Image.open(tmp_path / "clip.gif") as clip:
        assert clip.size == (images[0].width, images[0].height) == (450, 200)
        assert clip.n_frames > 5


def test_what_is_shown_does_not_change_training(logger):
    film_env = SB3VecEnv(make_vec("CartPole-v1", 1, "cpu"))
    callbacks = [VideoCallback(film_env, 20, fps=10), TensorBoardCallback({}, {})]
    watched, alone = learn(logger, callbacks), learn(None, None)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


# --- the lab --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [GumbelSAC, GumbelREPPO])
def test_the_lab_measures_the_live_critic_and_does_not_change_training(
    algorithm, tmp_path, monkeypatch
):
    monkeypatch.setattr(on_run, "TEMPERATURES", (1.0,))  # fewer methods, less time
    monkeypatch.setattr(on_run, "microseconds", lambda call: 0.0)
    settings = {GumbelSAC: {"learning_starts": 8, "batch_size": 4}, GumbelREPPO: {"n_steps": 8}}
    states = []
    for callback in (LabCallback(20), None):
        env = make_vec("CartPole-v1", 2, "cpu")
        model = algorithm("MlpPolicy", env, **settings[algorithm], **SMALL)
        model.env.seed(0)
        if callback:
            model.set_logger(configure(str(tmp_path), ["tensorboard"]))
        model.learn(48, callback=callback)
        model.logger.close()
        states.append(model.policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    images = read_all(tmp_path).Images("lab/estimators")
    assert [image.step for image in images] == {GumbelSAC: [20, 40], GumbelREPPO: [32, 48]}[
        algorithm
    ]
    (tmp_path / "figure.png").write_bytes(images[0].encoded_image_string)
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.size == (images[0].width, images[0].height)


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    words = ["--total-timesteps=64", "--num-envs=4", "--algorithm.n-steps=8", "--video-freq=32"]
    words += ["--algorithm.num-minibatches=1", "--policy-kwargs.net-arch=[4]", "--eval-episodes=1"]
    assert main(["train", "--algo=ppo", f"--run-dir={path}", *words]) == 0
    return path


def test_train_writes_the_story_of_a_run(run_dir):
    events = read_all(run_dir)
    tensors = events.Tags()["tensors"]
    assert {"custom_scalars__config__", "config/text_summary"} <= set(tensors)
    environment = events.Tensors("environment/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| actions | Discrete(2) |" in environment
    assert "| stepped by | torch on cpu |" in environment
    assert [image.step for image in events.Images(TAG)] == [32, 64]
    assert f"{ACTIONS}00" in read_histograms(run_dir)
    assert "eval/mean_reward" in read_scalars(run_dir)


def test_the_lab_of_an_algorithm_without_a_critic_of_actions_is_refused(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--algo=ppo", "--lab-freq=10", f"--run-dir={path}"]) == 2
    assert "--lab-freq 10: ppo has no critic of actions" in capsys.readouterr().err
    assert not path.exists()


def test_clips_of_an_environment_without_pictures_are_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(ENVS, "Unseen-v0", ("faulty_envs:FaultyTorch", {}))
    path = tmp_path / "run"
    words = ["--env=Unseen-v0", "--algo=ppo", "--video-freq=10", f"--run-dir={path}"]
    assert main(["train", *words]) == 2
    assert "Unseen-v0 cannot be rendered" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such directory\n"),
        (["{run}", "{run}/models"], "models has no TensorBoard event files"),
        (["{run}", "--port", "x"], "--port: must be an integer"),
    ],
)
def test_mistakes_are_one_line(run_dir, capsys, words, message):
    assert main(["tensorboard", *(word.format(run=run_dir) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def serve(*words):
    """Start the command; return its process and address."""
    command = [sys.executable, "-u", "-m", "rl_gumbel", "tensorboard", "--port=0", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "http://" in line:
            return process, "http://" + line.split("http://")[1].split("/")[0]
    raise AssertionError("TensorBoard did not start")


ANY_STATUS = {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"], "startIndex": 0}


def ask(address, path, question=None):
    body = None if question is None else json.dumps(question).encode()
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/data/{path}", body, header)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def wait_for(address, path, is_there):
    """Return the answer when TensorBoard has read its files."""
    for _ in range(100):
        answer = ask(address, path)
        if is_there(answer):
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{path}: {answer}")


def test_tensorboard_serves_the_layout_and_each_run_by_name(run_dir, tmp_path):
    other = tmp_path / "other"
    logger = configure(str(other), ["tensorboard"])
    logger.record("a", 1.0)
    logger.dump(1)
    logger.close()
    process, address = serve(run_dir, other)
    try:
        runs = wait_for(address, "runs", lambda runs: len(runs) == 2)
        names = {name.removesuffix("/.").rpartition("/")[2] for name in runs}
        assert names == {"run", "other"}
        layout = wait_for(address, "plugin/custom_scalars/layout", bool)
        assert [category["title"] for category in layout["category"]] == list(LAYOUT)
        groups = ask(address, "plugin/hparams/session_groups", {"sliceSize": 9} | ANY_STATUS)
        found = {v["name"]["tag"]: v["value"] for v in groups["sessionGroups"][0]["metricValues"]}
        last = read_scalars(run_dir)["eval/mean_reward"][1][-1]
        assert found["eval/mean_reward"] == pytest.approx(last)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_draws_the_charts_of_the_layout(run_dir, tmp_path):
    process, address = serve(run_dir)
    try:
        wait_for(address, "plugin/custom_scalars/layout", bool)
        shot = tmp_path / "shot.png"
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000"]
        words += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
        command = [BROWSER, *words, "--window-size=1400,900", f"{address}/#custom_scalars"]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    # Right of the list of runs and below the head line all is grey but the lines of the charts.
    charts = pixels[140:, 370:]
    assert (np.ptp(charts, -1) > 90).sum() > 100
