"""Dependencies point one way: kernels know nothing of mmrl, and objectives know no model."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOOP = ["mmrl.models", "mmrl.rollout", "mmrl.training", "mmrl.rl", "mmrl.report", "mmrl.data"]
# Folder -> prefixes that its files must not import.
FORBIDDEN = {
    "pallas_kernels": ["mmrl", "launch"],
    "mmrl": ["launch"],
    "mmrl/rl": ["mmrl.models", "mmrl.rollout", "mmrl.training", "mmrl.data"],
    "mmrl/models": ["mmrl.rollout", "mmrl.training", "mmrl.rl", "mmrl.data", "mmrl.report"],
    "mmrl/data": ["mmrl.models", "mmrl.rollout", "mmrl.training", "mmrl.rl", "mmrl.report"],
    "mmrl/text": [
        "mmrl.models",
        "mmrl.rollout",
        "mmrl.training",
        "mmrl.rl",
        "mmrl.report",
        "mmrl.data",
        "mmrl.rewards",
        "jax",
    ],
    "mmrl/rollout": ["mmrl.training", "mmrl.report", "mmrl.rewards"],
    "mmrl/serving": ["mmrl.training", "mmrl.report", "mmrl.rewards", "mmrl.rl", "mmrl.serve"],
    "mmrl/rewards": ["mmrl.models", "mmrl.rollout", "mmrl.training", "mmrl.report"],
    "mmrl/sandbox": ["jax", *LOOP],
    "mmrl/tools": ["jax", *LOOP],
    "mmrl/conversations": ["jax", *(name for name in LOOP if name != "mmrl.data")],
    "mmrl/slime": ["mmrl.train", "mmrl.training.run", "mmrl.training.rollouts", "mmrl.report"],
    "mmrl/report": ["mmrl.models", "mmrl.rollout", "mmrl.training", "mmrl.rl"],
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_imports_what_stands_above_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        for prefix in FORBIDDEN[folder]
        if f"{name}.".startswith(f"{prefix}.")
    ]
    assert not wrong


def test_partition_specs_are_written_in_one_file():
    files = [p for p in (ROOT / "mmrl").rglob("*.py") if "PartitionSpec" in p.read_text()]
    assert [str(p.relative_to(ROOT)) for p in files] == ["mmrl/sharding.py"]
