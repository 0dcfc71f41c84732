"""A tiny checkpoint in Hugging Face's form whose tokens are bytes, with ChatML's ends."""

from pathlib import Path

import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers

from mmrl.models import Decoder, DecoderConfig
from mmrl.models.pretrained.save import save_hf
from mmrl.text import PretrainedTokenizer


def make_checkpoint(folder: Path, template: str | None = None) -> Path:
    """Qwen2's architecture, 258 tokens, one small layer; its tokenizer lies beside it too."""
    special = ["<|im_end|>", "<|im_start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    directory = folder.parent / "tokenizer"
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = PretrainedTokenizer(str(directory), template=template)
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
    save_hf(nnx.state(Decoder(config, nnx.Rngs(7))), config, folder, tokenizer)
    return folder
