"""Runs the steps of a chain in this process: starting one for every tool takes longer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lib.pipeline import runner


def run_tools_here(
    monkeypatch: pytest.MonkeyPatch,
    note: Callable[[Sequence[str], Path | None], None] = lambda command, log: None,
) -> None:
    """Replaces `runner.run_tool`; `note` is called with every command and its log."""

    def run_tool(command: Sequence[str], log: Path | None = None) -> int:
        note(command, log)
        tool = importlib.import_module(command[0].removesuffix(".py").replace("/", "."))
        return tool.main(list(command[1:]))

    monkeypatch.setattr(runner, "run_tool", run_tool)
