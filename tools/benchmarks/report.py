"""Conditions and rows of a benchmark; shows and keeps them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lib.engine.runs import describe_environment
from lib.files import write_json


@dataclass(frozen=True)
class Conditions:
    """Conditions of a measurement."""

    device: torch.device = torch.device("cpu")
    seed: int = 0
    """Whatever is drawn follows from it."""
    quick: bool = False
    """Small sizes and few repeats, to see that it runs; the goals are meant for the full run."""


@dataclass(frozen=True)
class Row:
    """One measured number beside its goal."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    """Origin of the number where it is not obvious, such as an extrapolation."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal. A NaN meets none."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return above and below

    @property
    def goal(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return ", ".join(f"{s} {_number(b)} {self.unit}" for s, b in bounds if b is not None)


def table_text(rows: Sequence[Row]) -> str:
    """The rows as an aligned table, goals beside what was measured, and the notes below it."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    table = [("", "measured", "goal", "")]
    for row in rows:
        mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        table.append((row.what + mark, f"{_number(row.value)} {row.unit}", row.goal, verdict))
    first, second, third, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [f"{a:<{first}}  {b:>{second}}  {c:>{third}}  {d}".rstrip() for a, b, c, d in table]
    return "\n".join([*lines, *(f"[{n}] {note}" for n, note in enumerate(notes, start=1))])


def describe_machine() -> dict[str, Any]:
    """`describe_environment`, and what the numbers of a benchmark depend on beside that."""
    gpu = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        gpu = {"name": properties.name, "memory_bytes": properties.total_memory}
    return {
        **describe_environment(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "gpu": gpu,
    }


def machine_text(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    gpu = machine["gpu"]["name"] if machine["gpu"] else "no GPU"
    return (
        f"{machine['cpu']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} threads, load {machine['load']:.1f}; "
        f"torch {machine['packages']['torch']}; {gpu}"
    )


def write_numbers(
    path: str | Path,
    name: str,
    rows: Sequence[Row],
    machine: dict[str, Any],
    conditions: Conditions,
) -> None:
    """Keeps the rows as JSON, with the machine that they were measured on."""
    content = {
        "benchmark": name,
        "missed": [row.what for row in rows if row.met is False],
        "conditions": {**asdict(conditions), "device": str(conditions.device)},
        "machine": machine,
        "rows": [{**asdict(row), "met": row.met} for row in rows],
    }
    write_json(path, content, indent=2)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
