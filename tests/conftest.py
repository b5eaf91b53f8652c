"""Before any test module is read, Ray learns its authentication mode: it reads it when imported."""

import orchestrator  # noqa: F401
