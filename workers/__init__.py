"""Run every process of a run except the driver, and define the records that processes exchange."""

import os
import sys

#: Folders that the driver could import from; appended, so that they never hide this project.
USER_PATH_VARIABLE = "BALLAST_USER_PATH"

for _folder in os.environ.get(USER_PATH_VARIABLE, "").split(os.pathsep):
    if _folder and _folder not in sys.path:
        sys.path.append(_folder)
