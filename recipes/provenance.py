"""The origin of a result: the command and the versions."""

from __future__ import annotations

import platform
import shlex
import sys
from typing import Any

import torch

import whitebox_crate


def provenance(module: str) -> dict[str, Any]:
    """The command line of this process, as `python -m MODULE`, and versions; for results in JSON."""
    versions = {"whitebox_crate": whitebox_crate.__version__, "torch": torch.__version__}
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "versions": {**versions, "python": platform.python_version()},
    }
