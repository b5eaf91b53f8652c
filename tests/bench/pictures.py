"""Pictures of README and guides, taken from reports of recorded runs by a headless Chromium.

    python tests/bench/pictures.py runs/quickstart [--time RUN RUN]

Writes the first screen of the run's report, and of two runs side by side where their time went, in
light colours, into `orchestrator/report/`. Trains nothing and measures nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.cli.parser import main as ballast

FOLDER = Path(__file__).resolve().parents[2] / "orchestrator" / "report"
ONLY_TIME = "<style>#top, nav, main > :not(#time) { display: none }</style></head>"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def take(report: Path, picture: Path, *, width: int, height: int) -> None:
    """Write the first screen of an HTML file as a PNG file.

    Raises:
        SystemExit: there is no Chromium on the PATH.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(NAMES)} is on the PATH: install chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "--virtual-time-budget=5000",
                f"--screenshot={picture}",
                report.resolve().as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )


def report_of(runs: list[Path], page: Path) -> str:
    """Write the report of some runs, and return it as text.

    Raises:
        SystemExit: there is none; the command has said why.
    """
    if code := ballast(["report", *map(str, runs), "--output", str(page)]):
        sys.exit(code)
    return page.read_text()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--time", type=Path, nargs=2, help="folders of two runs")
    options = parser.parse_args()
    pictures = [FOLDER / "quickstart.png"]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        report_of([options.run], page)
        take(page, pictures[0], width=1280, height=1000)
        if options.time:
            pictures.append(FOLDER / "time.png")
            text = report_of(options.time, page)
            page.write_text(text.replace("</head>", ONLY_TIME, 1))
            take(page, pictures[1], width=1280, height=1420)
    for picture in pictures:
        print(f"{picture.name}: {picture.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
