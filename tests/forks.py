"""The processes of comparisons and reproductions as forks, which saves their seconds of imports.

``command("compare", ..., before=FORKED)`` is what it is with processes that start anew.
"""

FORKED = """
import os, signal, sys
from equipoise.plans import child_process, engine, processes

class Forked:
    def __init__(self, words, log, environment, lock, folder):
        self.returncode, parent = None, os.getpid()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self.run(parent, words, log, environment)

    def run(self, parent, words, log, environment):
        code = 99
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for number in (1, 2):
                os.dup2(file, number)
            os.environ.update(environment)
            sys.argv = ["child_process", str(parent), *words]
            child_process.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

processes.spawn = Forked
engine.LOOK_SECONDS = 0.01
child_process.LOOK_SECONDS = 0.02
"""

# As on a system that has neither: also for what was imported before.
BLOCKED = """
import sys
from equipoise.store import locks
sys.modules["fcntl"] = sys.modules["resource"] = locks.fcntl = None
for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
    del sys.modules[name]
"""
