"""The troubleshooting page names only what exists."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest
from absl import flags

import mmrl.train  # noqa: F401  its flags
from mmrl import config as configs
from mmrl.models import LoraConfig
from mmrl.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCE = "".join(path.read_text() for path in (ROOT / "mmrl").rglob("*.py"))


def test_config_keys_exist_and_take_the_values_shown():
    config = configs.load(ROOT / "configs" / "quickstart.py")
    assert isinstance(config, TrainConfig)
    valid = {*configs.keys(config), *(f"model.lora.{name}" for name in configs.keys(LoraConfig()))}
    named = re.findall(r"config\.([a-z_.]+[a-z_])", PAGE)
    assert len(named) > 15
    assert set(named) <= valid
    shown = dict(re.findall(r"--config\.([a-z_.]+)=([\w.-]+)`", PAGE))
    shown = {key: value for key, value in shown.items() if value != "N"}
    assert len(shown) >= 6
    configs.override(config, shown)


def test_metrics_exist():
    names = set(re.findall(r"`([a-z]+/[a-z_]+)`", PAGE))
    assert len(names) > 10
    assert [name for name in sorted(names) if f'"{name}"' not in SOURCE] == []


def test_flags_and_modules_exist():
    named = {name for name in re.findall(r"--([a-z_]+)`", PAGE)}
    assert named and all(name in flags.FLAGS for name in named)
    modules = {m for m in re.findall(r"`?(?:python -m )?((?:mmrl|launch)\.[a-z_]+)", PAGE)}
    assert modules and all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"JAX_[A-Z_]+", PAGE))))
def test_jaxs_variables_are_settings_of_jax(name):
    assert hasattr(jax.config, name.lower())


@pytest.mark.parametrize(
    "text", ["gradients in a row were not finite", "rewards failed, the first"]
)
def test_messages_are_those_of_the_code(text):
    assert text in SOURCE and text in PAGE
