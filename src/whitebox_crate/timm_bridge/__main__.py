"""`python -m whitebox_crate.timm_bridge SCRIPT ...`: a script of timm's, with this package's models registered."""

import runpy
import sys
from pathlib import Path

if len(sys.argv) < 2:
    sys.exit("usage: python -m whitebox_crate.timm_bridge SCRIPT [ARGUMENT ...]")
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as `python SCRIPT` has it
runpy.run_path(sys.argv[0], run_name="__main__")
