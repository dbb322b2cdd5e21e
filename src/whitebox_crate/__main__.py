"""`python -m whitebox_crate`, the same as `whitebox-crate`."""

import sys

from .cli import main

sys.exit(main())
