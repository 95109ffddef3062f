"""Files of every format that there was, kept as they were written and read by this version."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_gumbel.checkpoint import find_checkpoint, load_model, model, store
from rl_gumbel.cli import main

DATA = Path(__file__).parent / "data"


def test_there_is_a_file_of_every_format():
    """Whoever raises a version leaves one of the last."""
    for number in range(1, model.FORMAT_VERSION + 1):
        record = json.loads((DATA / f"model-format-{number}" / "model.json").read_text())
        assert record["format_version"] == number
    for number in range(1, store.FORMAT_VERSION + 1):
        run = find_checkpoint(DATA / f"run-format-{number}")
        assert run is not None and run.skipped == ()


def test_a_model_of_format_1_predicts_what_it_did():
    """GumbelSAC of the first week, before it counted updates that it skipped."""
    loaded = load_model(DATA / "model-format-1", device="cpu")
    assert loaded.action_space == spaces.MultiDiscrete([3, 2])
    assert loaded.num_timesteps == 40
    obs = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)
    actions, _ = loaded.predict(obs, deterministic=True)
    assert actions.tolist() == [[0, 1], [0, 1], [2, 1], [2, 1], [2, 0], [2, 0]]
    with torch.no_grad():
        log_probs = loaded.policy.distribution(torch.as_tensor(obs)).log_probs
    expected = torch.tensor([-0.8900451064109802, -1.2450737953186035, -1.199173927307129])
    torch.testing.assert_close(log_probs[0, 0], expected, rtol=1e-5, atol=1e-5)
    assert loaded.log_ent_coef.item() == pytest.approx(-3.9270308017730713)
    assert loaded.skipped_updates == 0


def test_a_run_of_format_1_goes_on(tmp_path, capsys):
    shutil.copytree(DATA / "run-format-1", tmp_path / "run")
    words = ["resume", str(tmp_path / "run"), "--total-timesteps=128", "--no-progress"]
    assert main(words) == 0
    assert "after 64 steps" in capsys.readouterr().out
    assert find_checkpoint(tmp_path / "run").steps == 128


@pytest.mark.parametrize("number", [0, 2, 99])
def test_another_format_is_refused_with_both_numbers(tmp_path, capsys, number):
    shutil.copytree(DATA / "run-format-1", tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoints" / "64" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format_version": number}))
    assert main(["resume", str(tmp_path / "run"), "--no-progress"]) == 5
    message = f"{manifest.parent} has format {number}; this version of rl-gumbel reads 1"
    assert capsys.readouterr().err == f"rl-gumbel: {message}\n"
    shutil.copytree(DATA / "model-format-1", tmp_path / "model")
    record = tmp_path / "model" / "model.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format_version": number}))
    with pytest.raises(ValueError, match=f"has format {number}; this version of rl-gumbel reads 1"):
        load_model(tmp_path / "model", device="cpu")
