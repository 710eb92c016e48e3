"""How much memory a side needs: measured in a process of its own, so that none shares another's.

On a CPU it is the most that the process has held, less what it held before the side was made:
model and data are there, libraries are loaded and warm. On CUDA it is what torch has allocated.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from equipoise.errors import RunError
from equipoise.stopwatch import peak_memory

HERE = str(Path(__file__).resolve().parent.parent)
MAIN = f"import sys; sys.path.insert(0, {HERE!r}); from benchmarks.__main__ import main; main()"
COMMAND = (sys.executable, "-P", "-c", MAIN, "--memory-of", "-")
LEAST = 32 * 2**20
_KIB = 1024


def measured(order: Mapping[str, Any], command: Sequence[str] = COMMAND) -> int:
    """Return the bytes that a side needs, measured by another process.

    Arguments:
        order: The side and its case: see :func:`benchmarks.job.memory_of`.
        command: What reads the order from its standard input and prints the bytes.

    Raises:
        RunError: If that fails.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as child:
        try:
            out, err = child.communicate(json.dumps(order))
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        last = (err.strip() or "it said nothing").splitlines()[-1]
        raise RunError(f"the memory of {order['side']} could not be measured: {last}")
    return int(json.loads(out.strip().splitlines()[-1]))


def at_least(peak: int) -> int:
    """Return a peak for comparisons: libraries keep up to 32 MiB for themselves."""
    return max(peak, LEAST)


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that were held while something ran, beyond those from before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _forget_peak()
    before = _status("VmRSS") or peak_memory()
    work()
    return max(0, (_status("VmHWM") or peak_memory()) - before)


def _forget_peak() -> None:
    """Let the highest mark of this process begin anew, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _status(key: str) -> int:
    """Return a number of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(key)), 0)
