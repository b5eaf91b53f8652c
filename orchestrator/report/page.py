"""Write a report as one HTML file that needs no server and no network.

Scripts and styles stand in `page/`, uPlot's among them, and are put into the file. All that a run
recorded goes into one JSON script element, never into markup: a response of a model is text.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).resolve().parent / "page"
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "elements.js",
    "charts.js",
    "time.js",
    "prompts.js",
    "tokens.js",
    "rollouts.js",
    "settings.js",
    "main.js",
)
STYLES = ("vendor/uPlot.min.css", "style.css")
FILE = "report.html"


def render(payload: dict[str, Any]) -> str:
    """Return the HTML of a record of `payload.build`."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        title=" · ".join(run["name"] for run in payload["runs"]),
        styles=[_read(name) for name in STYLES],
        scripts=[_read(name) for name in SCRIPTS],
        payload=script_json(payload),
    )


def script_json(value: Any) -> str:
    """Return JSON that may stand in a script element.

    No `<` is left in it, so that no text can end the element; nor a line separator of Unicode.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write(path: Path, html: str) -> None:
    """Write the file beside its name, then rename it; a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.partial")
    # A lone surrogate in a name or a text must not end the report.
    draft.write_bytes(html.encode("utf-8", errors="replace"))
    os.replace(draft, path)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
