"""Installing on a machine that lacks something ends in one line that names what to install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("bash", "cat", "sha256sum", "cut", "df", "awk", "dirname")


@pytest.fixture
def project(tmp_path):
    """A copy of what the script reads, in a folder whose name has a space."""
    folder = tmp_path / "my project"
    for name in ("scripts/install.sh", "requirements.txt", "setup.py", "lib/proposals/_merge.pyx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def run(project, tmp_path):
    def run(python=None, programs=(), **environment):
        """Runs the script where only `programs` are installed, with a stand-in for Python."""
        path = tmp_path / "bin"
        path.mkdir(exist_ok=True)
        for name in (*NEEDED, *programs):
            (path / name).unlink(missing_ok=True)
            (path / name).symlink_to(shutil.which(name) or "/bin/true")
        if python is not None:
            (path / "python3").write_text(f"#!{shutil.which('bash')}\n{python}\n")
            (path / "python3").chmod(0o755)
        done = subprocess.run(
            [shutil.which("bash"), project / "scripts/install.sh"],
            env={"PATH": str(path), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
        assert not (project / ".venv/cim-installed").exists()
        return done.stderr

    return run


def real(*missing):
    """A Python in which parts of the script's questions are answered with no."""
    cases = "".join(f'case "$*" in *"{text}"*) exit 1 ;; esac\n' for text in missing)
    return f'{cases}exec "{sys.executable}" "$@"'


def test_no_python(run):
    assert "no python3 found" in run()


def test_an_old_python(run):
    said = run(real("version_info < "))
    assert "Python 3.11 or newer needed" in said


def test_no_venv_module(run):
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in run(real("ensurepip"))


def test_no_headers(run):
    assert f"apt-get install python3.{sys.version_info[1]}-dev" in run(real("Python.h"))


def test_no_compiler(run):
    assert "apt-get install g++" in run(real())


def test_unknown_build_of_pytorch(run):
    assert "set it to cpu" in run(real(), ["c++"], CIM_TORCH="gpu")


def test_too_little_disk(run, project, tmp_path):
    venv = project / ".venv/bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(sys.executable)
    (tmp_path / "bin").mkdir()
    fake = "#!/bin/bash\nprintf 'head\\nnone 9 9 1048576 9%% /\\n'\n"  # 1 GB free
    (tmp_path / "df").write_text(fake)
    (tmp_path / "df").chmod(0o755)
    said = run(real(), ["c++"], BASH_ENV=str(write_function(tmp_path)))
    assert "has 1 GB free, 7 GB needed" in said


def write_function(folder):
    path = folder / "functions"
    path.write_text(f'df() {{ "{folder}/df" "$@"; }}\n')
    return path


def test_the_scripts_environment_is_left_as_it_is(project):
    done = subprocess.run(
        ["bash", project / "scripts/install.sh"],
        env={**os.environ, "CIM_VENV": "none"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and not (project / ".venv").exists()
