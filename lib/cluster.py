"""What the clusters that `lib.parallel.for_each` can work on have in common."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

CONNECT_SECONDS = 15.0
PATIENCE_SECONDS = 60.0
"""So long a cluster may be without any worker."""

WORKERS_DIED = (
    "the workers that had it died (out of memory?), of this image or of another one that they had "
    "with it; run again"
)


class ClusterError(ConnectionError):
    """The cluster cannot do the work any more; what it finished is kept."""


def failed_images(batch: Any, reason: str) -> list[tuple[str, None, str]]:
    """What a batch of joblib's, of calls of `lib.parallel._attempt`, returns where all failed."""
    return [(arguments[1], None, reason) for _, arguments, _ in batch.items]


def no_worker() -> ClusterError:
    return ClusterError(
        f"the cluster has had no worker for {PATIENCE_SECONDS:g} s; run again with workers"
    )


def first_line(error: BaseException) -> str:
    """The message of an error, shortened, or its type where it has none."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return shorten(line, 200, placeholder=" ...")
