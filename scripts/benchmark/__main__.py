"""`python -m benchmark`, which scripts/bench runs."""

import sys

from benchmark.program import main

sys.exit(main())
