"""For all tests."""

import os
from pathlib import Path

# The BPF program is compiled once, and not for each agent that a test starts.
os.environ.setdefault("CACHE_DIRECTORY", str(Path(__file__).resolve().parents[1] / ".cache/programs"))
