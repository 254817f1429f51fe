"""``python -m heptane.cli``."""

import sys

from heptane.cli import main

sys.exit(main())
