"""The one ending that SGLang tells by a signal; deaths of its processes are runner.engines.endings'.

SGLang's own way is half a minute of diagnostics and a kill of the whole tree.
"""

from __future__ import annotations

import time
from typing import Any

from runner.engines.endings import KNOWS_BETTER_S, leave


def on_sigquit(signum: int = 0, frame: Any = None) -> None:
    """For SGLang's `custom_sigquit_handler`: a child process of it has failed and says so."""
    time.sleep(KNOWS_BETTER_S)
    leave("one of SGLang's processes failed (its words are above)")
