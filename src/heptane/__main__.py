"""``python -m heptane``: the command line."""

import sys

from heptane.cli import main

sys.exit(main())
