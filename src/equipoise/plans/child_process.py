"""``python -P child_process.py PARENT WORDS``: a command that stops when its parent has ended.

It is run as a file, with ``-P``, so that no module is imported from the current folder. When the
process PARENT has ended, the command gets a SIGTERM: it saves and stops. The exit code is
``STOPPED`` if a signal stopped it.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

LOOK_SECONDS = 0.5
STOPPED = 143  # 128 + SIGTERM, as of a shell


def main() -> None:
    """Run ``equipoise WORDS`` until it ends, or its parent has ended."""
    parent = int(sys.argv[1])
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: it hides no other module
    sys.argv = ["equipoise", *sys.argv[2:]]
    if hasattr(signal, "SIGUSR2"):  # submitit's, for whoever runs this: it sends a SIGTERM
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    try:
        runpy.run_module("equipoise", run_name="__main__")
    except SystemExit as end:
        heard = getattr(sys.modules.get("equipoise.jobs.signals"), "HEARD", ())
        raise SystemExit(STOPPED if end.code and heard else end.code) from None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
