"""What the workers of tests/test_dask_cluster.py do; it imports little, so that they start fast."""

import os
import time


def folder_or_death(number):
    if number == 3:
        os._exit(1)
    if number == 5:
        raise ValueError("five is bad")
    return os.getpid(), os.getcwd()


def wait_long(number):
    time.sleep(600)
