"""`python -m runner` is `llmrun`."""

import sys

from runner.cli import main

sys.exit(main())
