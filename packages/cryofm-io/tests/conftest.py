"""Lets the tests import what they share (raw_mrc)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
