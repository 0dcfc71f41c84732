"""The environment of a process that a test starts: this checkout, and one device of the CPU."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
# Without LLVM's optimizations: most programs of a test run once.
FLAGS = "--xla_backend_optimization_level=0"


def environment(**variables: str) -> dict[str, str]:
    path = f"{TESTS.parent}:{TESTS}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "XLA_FLAGS": FLAGS} | variables
