"""``python -P child_process.py PARENT WORDS``: a command that outlives no parent.

It is run as a file, with ``-P``: nothing is imported because it lies in the current folder.
When the process PARENT is gone, however it ended, the command gets a SIGTERM: it saves what it
has and stops.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

LOOK_SECONDS = 0.5


def main() -> None:
    """Run ``equipoise WORDS`` until it ends, or the parent is gone."""
    parent = int(sys.argv[1])
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: it hides nothing
    sys.argv = ["equipoise", *sys.argv[2:]]
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    runpy.run_module("equipoise", run_name="__main__")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
