"""``python -P child_process.py PARENT WORDS``: a command that stops when its parent has ended.

It is run as a file, with ``-P``, so that no module is imported from the current folder. When the
process PARENT has ended, the command gets a SIGTERM: it saves and stops.
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
    """Run ``equipoise WORDS`` until it ends, or its parent has ended."""
    parent = int(sys.argv[1])
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: it hides no other module
    sys.argv = ["equipoise", *sys.argv[2:]]
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    runpy.run_module("equipoise", run_name="__main__")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
