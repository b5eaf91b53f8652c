"""Run the command line with `python -m orchestrator.cli`."""

import sys

from orchestrator.cli.parser import main

sys.exit(main())
