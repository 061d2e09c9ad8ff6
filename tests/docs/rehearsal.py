"""Runs the commands of a page in a real shell where every program is a stand-in that takes notes.

Variables, quotes, loops, here-documents and the project's own scripts work as they do for a reader;
what they call is noted down, with its arguments and the variables given to it, and not done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.documents import ROOT

# Programs that the scripts themselves need and that change nothing outside the rehearsal's folder.
HARMLESS = ("basename", "cat", "cut", "dirname", "env", "grep", "mkdir", "sed", "sha256sum", "sort")

_NOTE = """#!{bash}
separator=$'\\x1f'; IFS=$separator
standing=; [ "${{!#}}" = - ] && standing=$({cat})
printf '%s' "{name}$separator$*$separator$standing" >> "$CALLS"
printf '\\x1d' >> "$CALLS"
unset IFS
for name in $(compgen -e); do printf '%s=%s\\x1f' "$name" "${{!name}}" >> "$CALLS"; done
printf '\\x1e' >> "$CALLS"
"""
_BASH = """export INSIDE_A_SCRIPT=yes
exec {bash} "$@"
"""


@dataclass(frozen=True)
class Call:
    """One program that was started."""

    program: str
    arguments: tuple[str, ...]
    stdin: str
    """What came by a here-document, where the last argument is `-`."""
    exported: Mapping[str, str]
    """The variables that it was given, beyond those that the rehearsal itself sets."""
    nested: bool = False
    """Whether a script started it, which hands on all variables that it was given itself."""

    def __str__(self) -> str:
        return " ".join((self.program, *self.arguments))


class Rehearsal:
    """A folder that looks like the project, with stand-ins for `programs`."""

    def __init__(self, folder: Path, programs: tuple[str, ...]) -> None:
        self.project = folder / "project"
        for name in ("tools", "scripts", "configs", "examples"):
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, self.project / name, ignore=ignored)
        for name in ("requirements.txt", "setup.py"):
            shutil.copy(ROOT / name, self.project / name)
        (self.project / "data").mkdir()
        self._calls = folder / "calls"
        self._bin = folder / "bin"
        venv = self.project / ".venv/bin"
        for place in (self._bin, venv):
            place.mkdir(parents=True)
        (venv / "activate").touch()
        for name in HARMLESS:
            (self._bin / name).symlink_to(shutil.which(name))
        for name in {*programs, "bash", "python"}:
            self._stand_in(self._bin / name)
        for name in ("python", "pip", "pytest", "ruff"):
            self._stand_in(venv / name)

    def _stand_in(self, path: Path) -> None:
        known = {"bash": shutil.which("bash"), "cat": shutil.which("cat"), "name": path.name}
        after = _BASH if path.name == "bash" else ""
        path.write_text((_NOTE + after).format(**known))
        path.chmod(0o755)

    def run(self, text: str) -> tuple[list[Call], str]:
        """What the commands of `text` started, and what went wrong ('' for nothing)."""
        self._calls.write_text("")
        given = {
            "PATH": str(self._bin),
            "HOME": str(self.project),
            "CIM_VENV": "none",
            "CALLS": str(self._calls),
            "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8"),
        }
        process = subprocess.run(
            [shutil.which("bash"), "-e", "-o", "pipefail", "-c", text],
            cwd=self.project,
            env=given,
            capture_output=True,
            text=True,
            timeout=120,
        )
        calls = []
        for entry in self._calls.read_text().split("\x1e")[:-1]:
            words, exported = entry.split("\x1d")
            program, *arguments, stdin = words.split("\x1f")
            variables = dict(pair.split("=", 1) for pair in exported.split("\x1f")[:-1])
            for name in (*given, "PWD", "OLDPWD", "SHLVL", "_"):
                variables.pop(name, None)
            arguments = [word for word in arguments if word not in ("", "...")]
            nested = variables.pop("INSIDE_A_SCRIPT", None) is not None
            calls.append(Call(program, tuple(arguments), stdin, variables, nested))
        fault = process.stderr if process.returncode or "not found" in process.stderr else ""
        return calls, fault.strip()
