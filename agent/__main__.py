"""`python -m agent` is `dnstrail`."""

import sys

from agent.cli import main

sys.exit(main())
