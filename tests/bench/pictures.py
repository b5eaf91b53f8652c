"""Pictures of README and guides, taken from the report of a recorded run by a headless Chromium.

    python tests/bench/pictures.py runs/quickstart

Writes `orchestrator/report/quickstart.png`: the first screen of the run's report, in light colours.
Trains nothing and measures nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.cli.parser import main as ballast

PICTURE = Path(__file__).resolve().parents[2] / "orchestrator" / "report" / "quickstart.png"
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


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        if code := ballast(["report", str(run), "--output", str(report)]):
            sys.exit(code)
        take(report, PICTURE, width=1280, height=1000)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
