"""Packages that not everybody needs: the extras of setup.py."""

from __future__ import annotations

from importlib import import_module


def require_package(package: str, extra: str, wanted_by: str) -> None:
    """Raises ValueError with the remedy where an optional package is not installed.

    Args:
        extra: of setup.py, that brings it.
        wanted_by: the setting or option that needs it.
    """
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"{wanted_by} needs the package {package}, which is not installed; "
            f"pip install -e '.[{extra}]' in the project's folder"
        ) from None
