"""``python -m ecgstudy`` is the command line ``ecgstudy``."""

import sys

from ecgstudy.running.cli import main

sys.exit(main())
