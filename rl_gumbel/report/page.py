"""HTML that needs nothing but itself: no script, no network, pictures and films as data URIs."""

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from rl_gumbel.plots.figures import STYLE

TYPES = {".mp4": "video/mp4", ".gif": "image/gif"}
MAX_FILM_BYTES = 25_000_000
"""A longer film would make the page slow to open."""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What browsers enforce: nothing is loaded from anywhere."""
CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f3f0; color: #2d3440;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 0 0 12px; }
p.sub { margin: 0 0 22px; color: #5b636d; }
section { background: #fff; border: 1px solid #e3e4e1; border-radius: 8px; padding: 18px 22px;
  margin: 0 0 18px; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 0 0 18px; }
.card { background: #fff; border: 1px solid #e3e4e1; border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; line-height: 1.3; }
.card span { color: #5b636d; font-size: 13px; }
img, video { max-width: 100%; height: auto; display: block; margin: 0 auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 3px 18px 3px 0; vertical-align: top; }
th { font-weight: 600; color: #5b636d; white-space: nowrap; }
table.numbers td, table.numbers th { text-align: right; font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 700; }
pre, code { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { margin: 14px 0 0; font-size: 13.5px; color: #5b636d; }
dt { float: left; clear: left; margin-right: 8px; font-weight: 600; }
dd { margin: 0 0 2px; }
p.note { color: #5b636d; margin: 8px 0 0; font-size: 13.5px; }
"""


def make_page(title: str, subtitle: str, cards: Mapping[str, str], sections: Iterable[str]) -> str:
    """Return the page: a head line, a few big numbers by what they are, and sections."""
    numbers = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>\n'
        for name, value in cards.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(title)}</title>
<link rel="icon" href="data:,"/>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="sub">{escape(subtitle)}</p>
<div class="cards">
{numbers}</div>
{"".join(sections)}</main>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """Return a part of the page; without content it is nothing."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def note(text: str) -> str:
    """Return a remark."""
    return f'<p class="note">{escape(text)}</p>'


def facts(rows: Mapping[str, object]) -> str:
    """Return a table of names and values; None has no row."""
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>\n"
        for name, value in rows.items()
        if value is not None
    )
    return f"<table>\n{lines}</table>" if lines else ""


def definitions(meanings: Mapping[str, str]) -> str:
    """Return a list of names and what they mean."""
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>\n" for k, v in meanings.items())
    return f"<dl>\n{lines}</dl>" if lines else ""


def code(text: str) -> str:
    """Return text as it is."""
    return f"<pre>{escape(text)}</pre>"


def picture(figure: Figure, description: str) -> str:
    """Return a figure, drawn in the page's style."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    source = _data_uri("image/svg+xml", file.getvalue())
    return f'<img src="{source}" alt="{escape(description)}"/>'


def film(path: Path) -> str:
    """Return a film that plays in the page, or what to do if it is too long for that."""
    if path.stat().st_size > MAX_FILM_BYTES:
        return note(f"{path} is too large for a page; open it beside this one")
    source = _data_uri(TYPES[path.suffix], path.read_bytes())
    if path.suffix == ".gif":
        return f'<img src="{source}" alt="An episode"/>'
    return f'<video controls="" loop="" muted="" src="{source}"></video>'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
