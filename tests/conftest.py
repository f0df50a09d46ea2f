"""For all tests."""

import os
import signal
from pathlib import Path

# What a shell runs in the background ignores Ctrl-C, and so would the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The BPF program is compiled once, and not for each agent that a test starts.
os.environ.setdefault("CACHE_DIRECTORY", str(Path(__file__).resolve().parents[1] / ".cache/programs"))

# So is Python's code, whatever the environment says: a third of the time that an agent takes to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).resolve().parents[1] / ".cache/python"))
