import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import itertools, os, signal, torch
from lib.data.workers import load_ahead

def load(request):
    print(os.getpid(), flush=True)
    return torch.zeros(2**20)  # more than a pipe takes at once

samples = load_ahead(load, itertools.count(), num_workers=1)
next(samples)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_when_its_main_process_is_killed():
    program = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, timeout=60)
    worker = Path("/proc", program.stdout.split()[0].decode())
    deadline = time.monotonic() + 30
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists()
