"""A machine with a GPU often has little more than PyTorch."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Missing())
import benchmarks.gpu_checks
"""


def test_checks_of_a_gpu_need_no_package_that_only_some_of_them_use():
    packages = ["pydantic", "omegaconf", "yaml", "pycocotools", "hotcoco", "tensorboardX"]
    packages += ["skimage", "scipy"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *packages],
        cwd=Path(__file__).parents[2] / "tools",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
