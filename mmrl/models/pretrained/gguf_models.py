"""llama.cpp's architectures in GGUF files: metadata as a decoder's config, and their weight names.

The metadata become the fields of a config.json, so that `hf_config` alone knows the models.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.errors import UserError, nearest
from mmrl.models.config import DecoderConfig, RopeScaling
from mmrl.models.layers import rotary_frequencies
from mmrl.models.pretrained.hf_config import config_from_hf
from mmrl.models.pretrained.layout import Layout
from mmrl.models.pretrained.names import Spelling
from mmrl.models.pretrained.tensors import LazyTensor

FACTORS = "rope_freqs.weight"
ARCHITECTURES = ("llama", "qwen2")
# A metadata key after the architecture's name, and the field of config.json.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.dimension_count": "rotary_dim",
    "vocab_size": "vocab_size",
}
NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "input_norm.weight": "blk.{i}.attn_norm.weight",
    "post_attention_norm.weight": "blk.{i}.ffn_norm.weight",
    "softmax.q": "blk.{i}.attn_q.weight",
    "softmax.k": "blk.{i}.attn_k.weight",
    "softmax.v": "blk.{i}.attn_v.weight",
    "softmax.out": "blk.{i}.attn_output.weight",
    "softmax.q_bias": "blk.{i}.attn_q.bias",
    "softmax.k_bias": "blk.{i}.attn_k.bias",
    "softmax.v_bias": "blk.{i}.attn_v.bias",
    "softmax.out_bias": "blk.{i}.attn_output.bias",
    "mlp.gate": "blk.{i}.ffn_gate.weight",
    "mlp.up": "blk.{i}.ffn_up.weight",
    "mlp.down": "blk.{i}.ffn_down.weight",
}
# convert_hf_to_gguf.py reorders the rows of each head of llama's q and k, so that the two halves
# that rotate together (t) come in pairs: row (p, t) of the file is row (t, p) of the head.
PERMUTED = {
    "softmax.q": "(h p t) m -> m h (t p)",
    "softmax.k": "(h p t) m -> m h (t p)",
    "softmax.q_bias": "(h p t) -> h (t p)",
    "softmax.k_bias": "(h p t) -> h (t p)",
}


def gguf_table(architecture: str, table: Mapping[str, tuple[Spelling, ...]]) -> dict:
    """`names.TABLE` with a GGUF file's names: its layouts are Hugging Face's but for `PERMUTED`."""
    layouts = {key: table[key][0].layout for key in NAMES}
    if architecture == "llama":
        layouts |= {key: Layout(formula) for key, formula in PERMUTED.items()}
    return {key: (Spelling(name, layouts[key]),) for key, name in NAMES.items()}


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor], where: Path
) -> DecoderConfig:
    """The decoder of a GGUF file, in float32; tensors tell what no metadata do: tied, biases.

    Raises `UserError` for other architectures, for experts, and as `config_from_hf` does.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{where}: architecture {name!r} is not supported in GGUF; expected "
            f"{' or '.join(ARCHITECTURES)}.{nearest(str(name), ARCHITECTURES)} Take the safetensors"
        )
    if metadata.get(f"{name}.expert_count"):
        raise UserError(f"{where}: experts are not supported in GGUF: take the safetensors")
    found = {
        theirs: metadata[f"{name}.{key}"]
        for key, theirs in FIELDS.items()
        if f"{name}.{key}" in metadata
    }
    found["vocab_size"] = found.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    for key in ("rms_norm_eps", "rope_theta"):
        if key in found:
            # Stored in float32: 1e-5 would read as 9.999999747378752e-06.
            found[key] = float(str(np.float32(found[key])))
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none":
        factor = metadata.get(f"{name}.rope.scaling.factor")
        found["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    found["model_type"] = name
    found["use_sliding_window"] = "sliding_window" in found
    found["tie_word_embeddings"] = NAMES["head"] not in tensors
    found["attention_bias"] = NAMES["softmax.q_bias"].format(i=0) in tensors
    config = config_from_hf(found, where)
    if FACTORS not in tensors:
        return config
    return dataclasses.replace(config, rope_scaling=_llama3(config, tensors[FACTORS]))


def _llama3(config: DecoderConfig, tensor: LazyTensor) -> RopeScaling:
    """The scaling whose divisors of the rotary frequencies the file has as a tensor.

    It is read as that of all Llama 3 releases, which differ in `factor` only, or refused.
    """
    factors = tensor[...].astype(np.float64)
    scaling = RopeScaling("llama3", float(factors.max()))
    plain = dataclasses.replace(config, rope_scaling=None)
    expected = rotary_frequencies(plain) / rotary_frequencies(
        dataclasses.replace(config, rope_scaling=scaling)
    )
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-5):
        raise UserError(
            f"{tensor.file}: tensor {tensor.name}: expected the rotary scaling of Llama 3.1, found "
            f"divisors {factors}: take the safetensors, whose config.json names the scaling"
        )
    return scaling
