"""The same work for every image, on all cores, where one failing image does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm


def for_each(
    function: Callable[..., Any],
    tasks: Iterable[tuple[str, tuple[Any, ...]]],
    total: int,
    jobs: int = -1,
    title: str = "",
) -> tuple[dict[str, Any], dict[str, str]]:
    """Calls `function(*arguments)` for every task, showing progress.

    The tasks are taken from the iterable as workers become free, so it may make large ones. The
    workers are joblib's; its `parallel_config` chooses other ones than processes on this machine.
    A worker that dies is an error here.

    Args:
        function: something that other processes can import.
        tasks: (name, arguments); the names are distinct.
        total: how many tasks there are.
        jobs: workers; -1 is one per core, 1 is this process.

    Returns:
        (result by name, reason by name of those that failed), both in the order of the tasks.
    """
    calls = (delayed(_attempt)(function, name, arguments) for name, arguments in tasks)
    outcomes = Parallel(n_jobs=jobs, return_as="generator")(calls)
    results, failures = {}, {}
    for name, result, reason in tqdm(outcomes, total=total, desc=title, unit="image"):
        if reason is None:
            results[name] = result
        else:
            failures[name] = reason
    return results, failures


def failures_text(failures: dict[str, str], total: int, limit: int = 100) -> str:
    """The failures of `for_each` as lines to end a report with; at most `limit` are named."""
    lines = [f"{len(failures)} of {total} images failed:"]
    lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:limit]]
    if len(failures) > limit:
        lines.append(f"  ... and {len(failures) - limit} more")
    return "\n".join(lines)


def _attempt(
    function: Callable[..., Any], name: str, arguments: tuple[Any, ...]
) -> tuple[str, Any, str | None]:
    try:
        return name, function(*arguments), None
    except (ValueError, OSError) as error:
        return name, None, str(error)
    except Exception as error:  # whatever it is, the other images are worth finishing
        return name, None, f"{type(error).__name__}: {error}"
