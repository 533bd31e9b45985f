"""The peers' own environment, and the processes that time each contender."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from shutil import rmtree

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("peer_worker.py")
PACKAGES = ("torch", "numpy", "higher", "torchopt")
THEIRS = ("higher", "torchopt")


def peers_python(folder):
    """Python of the peers' environment, which is made if it is not there."""
    python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"Installing {', '.join(PACKAGES)} into {folder}, once", flush=True)
        constraints = str(ROOT / "constraints.txt")
        command = [python, "-m", "pip", "install", "--quiet", "-c", constraints]
        try:
            venv.create(folder, with_pip=True)
            subprocess.run([*command, *PACKAGES], check=True)
        except BaseException:  # half of it would pass for the whole the next time
            rmtree(folder, ignore_errors=True)
            raise
    return str(python)


class Unavailable(Exception):
    """A contender that cannot do what it was asked for."""


class Worker:
    """A process that times one contender; idle until it is asked.

    Parameters
    ----------
    name : str
        See `peer_worker`.
    python : str
        Of the environment that it runs in.
    verbose : bool
        Whether to show what it prints and where it failed.
    """

    def __init__(self, name, python, verbose):
        self.name, self.python, self.verbose = name, python, verbose
        self._start()

    def _start(self):
        self.process = subprocess.Popen(
            [self.python, str(WORKER), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self.verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do, **arguments):
        """The answer to one request; raises Unavailable on an error."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self._start()
            raise Unavailable("the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


class Workers(dict):
    """Workers by name, started when first asked for; "ours 2" is a second of "ours"."""

    def __init__(self, peers, verbose):
        self.peers, self.verbose = peers, verbose

    def __missing__(self, name):
        side = name.split()[0]
        python = self.peers if side in THEIRS else sys.executable
        self[name] = Worker(side, python, self.verbose)
        return self[name]

    def close(self):
        """End all."""
        for worker in self.values():
            worker.close()
