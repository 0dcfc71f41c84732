"""Tests run on the CPU with 8 virtual devices and JAX's compilation cache.

JAX_PLATFORMS=cuda runs those of the kernels for GPUs on one.

XLA compiles without LLVM's optimizations, which halves the time of tests that run a program once or
twice; XLA_FLAGS=--xla_force_host_platform_device_count=8 asks for them.
"""

import faulthandler
import os
import tempfile
from pathlib import Path

import pytest
from subprocesses import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FLAGS}")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mmrl-test-jax-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

MOST_MAPS = 16_000  # of the 65,530 that Linux allows a process


@pytest.fixture(autouse=True)
def bounded_maps():
    """XLA maps some hundred pieces of memory a program; a process without room for more dies."""
    yield
    with open("/proc/self/maps", "rb") as maps:
        many = sum(1 for _ in maps) > MOST_MAPS
    if many:
        import jax

        jax.clear_caches()


def pytest_collection_modifyitems(items):
    """Files with slow tests first: the quick ones fill the workers' last minutes."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _last_words(worker: str, session: str) -> Path:
    return Path(tempfile.gettempdir()) / f"mmrl-test-{session}-{worker}.crash"


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """A worker of xdist that dies leaves the stacks of its threads in a file."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        session = os.environ["PYTEST_XDIST_TESTRUNUID"]
        config.last_words = _last_words(worker, session).open("w")
        faulthandler.enable(config.last_words)


def pytest_unconfigure(config):
    if hasattr(config, "last_words"):
        Path(config.last_words.name).unlink()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report):
    """The failure of the test in which a worker died shows these stacks."""
    gateway = report.node.gateway
    path = _last_words(gateway.id, report.node.workerinput["testrunuid"])
    report.longrepr = f"{report.longrepr}\n{path.read_text() or 'killed without a word: memory?'}"
