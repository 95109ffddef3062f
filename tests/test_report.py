"""`rl-gumbel report`: a page that is whole, needs no network, and says what the files say."""

import base64
import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rl_gumbel.cli import main
from rl_gumbel.plots.events import read_histograms
from rl_gumbel.report.build import (
    build_report,
    format_return,
    format_seconds,
    policy_section,
    summarize,
)
from rl_gumbel.report.figures import draw_grid
from rl_gumbel.report.page import make_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WORDS = [
    *("--env=PendulumBank-v0", "--algo=ppo", "--total-timesteps=64", "--num-envs=4"),
    *("--algorithm.n-steps=4", "--algorithm.num-minibatches=1", "--policy-kwargs.net-arch=[4]"),
    *(
        "--eval-episodes=2",
        "--eval-freq=32",
        "--env-kwargs.n=3",
        "--env-kwargs.max-episode-steps=8",
    ),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a<b"
    assert main(["train", f"--run-dir={path}", *WORDS]) == 0
    return path


@pytest.fixture(scope="module")
def page(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "page.html"
    assert main(["report", str(run_dir), "--out", str(path)]) == 0
    return path


def parse(path):
    """Return the root of a page that must be well-formed XML after its first line."""
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert first == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def sections(root):
    return {part.find("h2").text: part for part in root.iter("section")}


def decode(source):
    """Return kind and content of a data URI."""
    kind, _, content = source.removeprefix("data:").partition(";base64,")
    return kind, base64.b64decode(content, validate=True)


def test_the_page_has_every_part(page):
    parts = sections(parse(page))
    assert list(parts) == [
        *("Return", "Film", "Evaluations", "Actions over training", "Losses and updates"),
        *("What ran", "Hardware", "Configuration"),
    ]


def test_nothing_is_loaded_from_anywhere(page):
    root = parse(page)
    sources = [e.get(name) for e in root.iter() for name in ("src", "href") if e.get(name)]
    assert len(sources) >= 6
    assert all(source.startswith("data:") for source in sources)
    text = re.sub(r'"data:[^"]*"', "", page.read_text())
    assert not re.search(r"(?i)https?:|//\w|@import|url\(|<script|<iframe", text)


def test_pictures_are_drawings_and_the_film_a_film(page):
    root = parse(page)
    pictures = [decode(e.get("src")) for e in root.iter("img")]
    assert len(pictures) == 4
    assert all(kind == "image/svg+xml" for kind, _ in pictures)
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for _, svg in pictures)
    assert all(e.get("alt") for e in root.iter("img"))
    kind, content = decode(root.find(".//video").get("src"))
    assert kind == "video/mp4"
    assert content[4:8] == b"ftyp"


def test_evaluations_are_those_of_the_file_and_the_best_is_bold(page, run_dir):
    lines = (run_dir / "evaluations.csv").read_text().split()[1:]
    values = [[float(v) for v in line.split(",")] for line in lines]
    rows = sections(parse(page))["Evaluations"].findall(".//tr")[1:]
    shown = [[float(cell.text.replace(",", "")) for cell in row] for row in rows]
    np.testing.assert_allclose(shown, values, atol=0.006)
    best = [row.get("class") == "best" for row in rows]
    assert best == [value == max(v[1] for v in values) for _, value, *_ in values]


def test_the_page_says_what_ran(page, run_dir):
    parts = sections(parse(page))
    facts = {row[0].text: row[1].text for row in parts["What ran"].iter("tr")}
    metadata = json.loads((run_dir / "metadata.json").read_text())
    assert facts["environment"] == "PendulumBank-v0 (n=3, max_episode_steps=8)"
    assert facts["algorithm"] == "ppo"
    assert facts["started"] == metadata["started"]
    assert f"torch {metadata['versions']['torch']}" in facts["versions"]
    assert parts["Configuration"].find("pre").text == (run_dir / "config.yaml").read_text()
    assert "cpus" in {row[0].text for row in parts["Hardware"].iter("tr")}


def test_metrics_are_explained(page):
    terms = [term.text for term in sections(parse(page))["Losses and updates"].iter("dt")]
    assert {"approx_kl", "entropy_loss", "value_loss"} <= set(terms)


def test_names_cannot_become_markup():
    text = make_page("<b>", 'a & "b"', {"<i>": "1 < 2"}, [])
    root = ElementTree.fromstring(text.partition("\n")[2])
    assert root.find(".//h1").text == "<b>"
    assert root.find(".//p").text == 'a & "b"'
    assert root.find(".//span").text == "<i>"


def test_the_first_numbers_are_the_last_and_the_best_evaluation():
    curves = {
        "eval/mean_reward": (np.array([10.0, 2000, 3000]), np.array([1.0, 9.5, 4.0])),
        "time/time_elapsed": (np.array([3000.0]), np.array([3723.0])),
        "rollout/ep_rew_mean": (np.array([3000.0]), np.array([-57.57692])),
    }
    assert summarize(curves) == {
        "return of the last evaluation": "4",
        "best evaluation, at step 2,000": "9.5",
        "training return, last 100 episodes": "-57.58",
        "environment steps": "3,000",
        "time of training": "1 h 2 min",
    }
    assert [format_return(r) for r in (-12345.67, 0.01234)] == ["-12,346", "0.01234"]
    assert [format_seconds(s) for s in (7.6, 61)] == ["8 s", "1 min 1 s"]


def test_panels_of_metrics_share_their_steps():
    steps = np.arange(1.0, 5)
    curves = {"train/a": (steps, steps), "train/b": (steps[:2], steps[:2])}
    limits = [axes.get_xlim() for axes in draw_grid(curves, ["train/a", "train/b"]).axes[:2]]
    assert limits[0] == limits[1] == (0, pytest.approx(4.08))


def test_of_many_factors_the_first_are_shown_and_the_rest_counted(run_dir):
    one = read_histograms(run_dir)["actions/factor_00"]
    text = policy_section({f"actions/factor_{k:02d}": one for k in range(30)})
    assert "The first 24 of 30 factors are shown." in text


def test_a_run_that_has_just_begun_has_a_page(run_dir, tmp_path):
    for name in ("config.yaml", "metadata.json"):
        shutil.copy(run_dir / name, tmp_path)
    text = build_report(tmp_path, {}, "There is none.")
    parts = sections(ElementTree.fromstring(text.partition("\n")[2]))
    assert parts["Return"].find("p").text == "Nothing was logged yet."
    assert parts["Evaluations"].find("p").text == "None was made yet."
    assert parts["Film"].find("p").text == "There is none."


def test_a_newer_model_is_filmed_anew_and_an_older_not(run_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run, ignore=shutil.ignore_patterns("videos"))
    films = []
    for _ in range(2):
        assert main(["report", str(run)]) == 0
        films.append((run / "videos" / "last-64.mp4").stat().st_mtime_ns)
    assert films[0] == films[1]
    (run / "models" / "last" / "model.safetensors").touch()
    assert main(["report", str(run)]) == 0
    assert (run / "videos" / "last-64.mp4").stat().st_mtime_ns > films[0]


def test_without_ffmpeg_the_page_says_what_to_install(run_dir, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run, ignore=shutil.ignore_patterns("videos"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["report", str(run)]) == 0
    text = sections(parse(run / "report.html"))["Film"].find("p").text
    assert 'pip install "rl-gumbel[video]"' in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 2, "nowhere is not a run directory"),
        (["{run}", "--no-video", "--out", "{run}"], 2, "is a directory; name a file"),
        (["{run}", "--out", "{run}/no/page"], 2, "there is no directory {run}/no"),
        (["{run}", "--out"], 2, "--out: expected one argument"),
    ],
)
def test_mistakes_are_one_line(run_dir, capsys, words, code, message):
    assert main(["report", *(word.format(run=run_dir) for word in words)]) == code
    err = capsys.readouterr().err
    assert message.format(run=run_dir) in err
    assert err.count("\n") == 1


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_shows_the_page_without_errors(page, tmp_path):
    shot = tmp_path / "page.png"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    command = [BROWSER, *words, "--window-size=1060,2400", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"), float)
    # Every quarter of the page shows something.
    assert all(part.std() > 5 for part in np.array_split(pixels, 4))


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_the_browser_would_have_told_of_a_page_that_loads_something(page, tmp_path):
    """What the test before relies on: the page's own policy refuses it, aloud."""
    bad = tmp_path / "bad.html"
    picture = '<img src="https://example.invalid/a.png" alt=""/></main>'
    bad.write_text(page.read_text().replace("</main>", picture))
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'x.png'}"]
    command = [BROWSER, *words, bad.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.search("CONSOLE.*Content Security Policy", done.stderr)
