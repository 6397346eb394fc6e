"""Lets the files of a benchmark import one another, as in scripts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
