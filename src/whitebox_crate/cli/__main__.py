"""`python -m whitebox_crate.cli`, the same as `whitebox-crate`."""

import sys

from . import main

sys.exit(main())
