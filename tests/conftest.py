"""Before any test module is read, Ray learns its authentication mode: it reads it when imported."""

from collections.abc import Iterator

import pytest

import orchestrator  # noqa: F401

TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")


@pytest.fixture(scope="session", autouse=True)
def terminal() -> Iterator[None]:
    """Width and colours of what is printed do not depend on the terminal that tests run in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TERMINAL:
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        yield
