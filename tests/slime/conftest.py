"""A tiny checkpoint in Hugging Face's form, and the files that slime's example commands name."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from flax import nnx
from tiny_run import one_device
from tokenizers import decoders, models, pre_tokenizers

from mmrl.models import Decoder, DecoderConfig
from mmrl.models.pretrained.save import save_hf
from mmrl.text import PretrainedTokenizer

REWARD = """
from slime.utils.types import Sample


async def agent_reward(args, sample: Sample, **kwargs) -> float:
    assert args.metadata_key == "tool_calls"
    wanted = len(sample.metadata["tool_calls"])
    return float(sample.tokens[-1] % 2 == wanted % 2)
"""


def byte_tokenizer(directory: Path) -> PretrainedTokenizer:
    """A tokenizer.json whose tokens are bytes, with ChatML's ends."""
    special = ["<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    return PretrainedTokenizer(str(directory))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Qwen2's architecture with 258 tokens and one small layer."""
    folder = tmp_path_factory.mktemp("slime")
    tokenizer = byte_tokenizer(folder / "tokenizer")
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=16,
        layer_pattern=("softmax",),
        attention_bias=True,
        initializer_range=0.2,
    )
    save_hf(nnx.state(Decoder(config, nnx.Rngs(7))), config, folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture(autouse=True)
def first_device():
    with one_device():
        yield


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory: my.py and agent_trajectories.parquet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my.py").write_text(REWARD)
    calls = [{"name": "f", "arguments": json.dumps({"x": 1})}]
    rows = [{"input": f"call {n}", "tool_calls": calls * n} for n in (1, 2)] * 4
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "agent_trajectories.parquet")
    return tmp_path
