"""Files from a stranger: none of them runs anything, and each is refused in one line."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from test_resume import finished  # noqa: F401 (a fixture)

from rl_gumbel import BatchedPPO, load_model
from rl_gumbel.checkpoint import find_checkpoint, load_weights
from rl_gumbel.checkpoint.store import FILES, _describe
from rl_gumbel.cli import main
from rl_gumbel.config import ConfigError, load_config
from rl_gumbel.config.reading import read_value


class Payload:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(code, err):
    return code in (2, 5) and len(err.splitlines()) == 1 and err.startswith("rl-gumbel: ")


def safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


HUGE = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
SHORT = {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}
PICKLE = pickle.dumps(Payload())
CONTENTS = {
    "a pickle": PICKLE,
    "a torch file": b"torch",
    "a header that is no JSON": safetensors(b"{"),
    "a header longer than the file": (1 << 60).to_bytes(8, "little") + b"{}",
    "a tensor larger than the file": safetensors(HUGE, b"\0" * 16),
    "a shape larger than its bytes": safetensors(SHORT, b"\0" * 4),
    "deep JSON": b"[" * 100_000,
    "a list": b"[]",
    "a class": b'{"$class": "os:system"}',
    "a tensor that is not there": b'{"training": {"$tensor": "nowhere"}}',
    "a long number": b"9" * 100_000,
}


def torch_pickle():
    buffer = io.BytesIO()
    torch.save({"policy.x": Payload()}, buffer)
    return buffer.getvalue()


def hostile(finished, name, content):  # noqa: F811
    """A run whose only checkpoint has a file of a stranger, under a manifest that fits it."""
    run = Path(shutil.copytree(finished, "run"))
    shutil.rmtree(run / "checkpoints/128")
    path = run / "checkpoints/256"
    (path / name).write_bytes(torch_pickle() if content == b"torch" else content)
    (path / "manifest.json").write_text(json.dumps(_describe(path)))
    assert find_checkpoint(run).steps == 256
    return run


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("kind", CONTENTS)
def test_no_file_of_a_checkpoint_runs_anything(finished, call, name, kind):  # noqa: F811
    """Whoever can write the files can write the manifest too."""
    run = hostile(finished, name, CONTENTS[kind])
    code, _, err = call("export", run, "out.zip")
    assert refused(code, err), (code, err)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "model.safetensors"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_resuming_refuses_them_too(finished, call, name, kind):  # noqa: F811
    run = hostile(finished, name, CONTENTS[kind])
    code, _, err = call("resume", run, "--total-timesteps", 320, "--no-progress")
    assert refused(code, err) and code == 5, (code, err)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [executed]",
        "env: !!python/object/apply:os.mkdir [executed]",
        "!!python/object/new:os.mkdir {args: [executed]}",
        "seed: !!python/name:os.mkdir",
    ],
)
def test_no_yaml_runs_anything(finished, call, text):  # noqa: F811
    Path("config.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(Path("config.yaml"))
    with pytest.raises(ConfigError):
        read_value(text)
    assert refused(*call("train", "--config", "config.yaml")[::2])
    run = Path(shutil.copytree(finished, "run"))
    shutil.copy("config.yaml", run / "config.yaml")
    for words in (["resume", run], ["evaluate", run], ["export", run, "out.zip"]):
        assert refused(*call(*words)[::2])


# --- zips of Stable-Baselines3 --------------------------------------------------------------------


def test_a_checkpoint_goes_to_a_zip_and_back(finished, call):  # noqa: F811
    code, out, _ = call("export", finished, "model.zip")
    assert (code, out) == (0, "model.zip: BatchedPPO after 256 steps\n")
    ours = load_model(finished / "models/last", device="cpu")
    theirs = BatchedPPO.load("model.zip", device="cpu")
    assert theirs.num_timesteps == 256
    for name, value in ours.policy.state_dict().items():
        assert torch.equal(value, theirs.policy.state_dict()[name])
    moments = theirs.policy.optimizer.state_dict()["state"][0]
    assert moments["step"] == 32 and moments["exp_avg"].abs().sum() > 0
    fresh = load_model(finished / "models/last", device="cpu", seed=1)
    for parameter in fresh.policy.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(fresh, "model.zip")
    for name, value in ours.policy.state_dict().items():
        assert torch.equal(value, fresh.policy.state_dict()[name])


def test_the_best_model_goes_to_a_zip(finished, call):  # noqa: F811
    assert call("export", finished, "best.zip", "--model", "best")[0] == 0
    assert BatchedPPO.load("best.zip", device="cpu").num_timesteps <= 256


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.pt", "ends in .zip"),
        ("nowhere/model.zip", "there is no directory nowhere"),
        ("there.zip", "there.zip is there already"),
    ],
)
def test_a_file_that_cannot_be_made_is_refused(finished, call, file, message):  # noqa: F811
    Path("there.zip").touch()
    code, _, err = call("export", finished, file)
    assert code == 2 and message in err and refused(code, err)


def pack(**members):
    with zipfile.ZipFile("strange.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return "strange.zip"


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bomb():
    """A megabyte of zeros in a kilobyte, as the file of torch would hold them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * (1 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: pack(policy_DOT_pth=saved({"x": Payload()})),
        lambda: pack(policy_DOT_pth=PICKLE),
        lambda: pack(policy_DOT_pth="text"),
        lambda: pack(policy_DOT_pth=saved([torch.ones(1)])),
        lambda: pack(policy_DOT_pth=saved({"x": 1})),
        lambda: pack(policy_DOT_pth=saved({"x": torch.ones(1)})),
        lambda: pack(policy_DOT_pth=bomb()),
        lambda: pack(data=json.dumps({":serialized:": "gASV"})),
        lambda: pack(DOTS__DOTS__policy_DOT_pth=saved({})),
    ],
    ids=[
        "payload",
        "bare pickle",
        "text",
        "no dict",
        "no tensors",
        "other networks",
        "bomb",
        "no policy",
        "elsewhere",
    ],
)
def test_weights_of_a_strange_zip_run_nothing(finished, make):  # noqa: F811
    model = load_model(finished / "models/last", device="cpu")
    with pytest.raises(ValueError, match=r"strange\.zip") as caught:
        load_weights(model, make())
    assert "\n" not in str(caught.value)


def test_weights_are_read_beside_a_payload_that_is_not(finished, call):  # noqa: F811
    """The member `data`, which SB3's own `load` unpickles, is left alone."""
    assert call("export", finished, "model.zip")[0] == 0
    with zipfile.ZipFile("model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["data"] = json.dumps({"x": {":type:": "", ":serialized:": "gASV"}}).encode()
    members["../../slipped"] = b"x"
    with zipfile.ZipFile("strange.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    model = load_model(finished / "models/last", device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for parameter in model.policy.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(model, "strange.zip")
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_zip_whose_sizes_lie_is_refused(finished, call):  # noqa: F811
    """The directory of a zip may claim anything; nothing is allocated for it."""
    assert call("export", finished, "model.zip")[0] == 0
    content = bytearray(Path("model.zip").read_bytes())
    with zipfile.ZipFile("model.zip") as archive:
        info = archive.getinfo("policy.pth")
    entry = content.rindex(b"policy.pth") - 46  # of the central directory
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 24 : entry + 28] = (info.file_size * 1000).to_bytes(4, "little")
    Path("strange.zip").write_bytes(content)
    model = load_model(finished / "models/last", device="cpu")
    with pytest.raises(ValueError, match=r"policy\.pth claims \d+ bytes in a file of \d+"):
        load_weights(model, "strange.zip")


def test_load_says_what_it_executes():
    assert "runs code" in BatchedPPO.load.__doc__


def test_the_payload_would_run():
    """Or nothing here would have shown anything."""
    pickle.loads(PICKLE)
    os.rmdir("executed")
