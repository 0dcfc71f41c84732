"""Converting a checkpoint takes the memory of a few of its tensors, however large it is."""

import json
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors

from mmrl.models.pretrained.safetensors import TensorSpec, write_safetensors

pytestmark = pytest.mark.slow

GIB = 2**30
BAR = 1.3 * GIB
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, EXPERT_SIZE, VOCABULARY = 1024, 8, 2, 128, 32, 2736, 512
LAYERS = [0, 0, 0, 0, 0, 0, 0, 1]  # MiniMax-M1's pattern: lightning, then one softmax layer
CONFIG = {
    "model_type": "minimax_m1",
    "architectures": ["MiniMaxM1ForCausalLM"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": len(LAYERS),
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rotary_dim": HEAD_DIM // 2,
    "intermediate_size": EXPERT_SIZE,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 0,
    "vocab_size": VOCABULARY,
    "rope_theta": 10_000_000,
    "rms_norm_eps": 1e-5,
    "postnorm": True,
    "attn_type_list": LAYERS,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
# Peak resident memory is read by the process itself: what the system reports to its parent may
# count the parent's own memory, which the child has before exec.
REPORTING = """
import atexit, re, runpy, sys
peak = lambda: re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
atexit.register(lambda: print("peak", peak(), "kB"))
"""


def m1_specs() -> list[TensorSpec]:
    """The names of minimax.md's section 3; the routers in float32, the rest in bfloat16."""
    width = HEADS * HEAD_DIM
    shapes = {
        "model.embed_tokens": (VOCABULARY, HIDDEN),
        "model.norm": (HIDDEN,),
        "lm_head": (VOCABULARY, HIDDEN),
    }
    for layer, kind in enumerate(LAYERS):
        held = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
        if kind == 0:
            held |= {
                "self_attn.qkv_proj": (3 * width, HIDDEN),
                "self_attn.output_gate": (width, HIDDEN),
                "self_attn.out_proj": (HIDDEN, width),
                "self_attn.norm": (width,),
            }
        else:
            held |= {
                "self_attn.q_proj": (width, HIDDEN),
                "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.o_proj": (HIDDEN, width),
            }
        held["block_sparse_moe.gate"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            place = f"block_sparse_moe.experts.{expert}"
            held |= {f"{place}.{w}": (EXPERT_SIZE, HIDDEN) for w in ("w1", "w3")}
            held[f"{place}.w2"] = (HIDDEN, EXPERT_SIZE)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in held.items()}
    float32 = np.dtype(np.float32)
    return [
        TensorSpec(f"{name}.weight", shape, float32 if name.endswith("moe.gate") else BFLOAT16)
        for name, shape in shapes.items()
    ]


def value(number: int, spec: TensorSpec) -> np.ndarray:
    """Random positive numbers below 2, other ones for each tensor."""
    rng = np.random.default_rng(number)
    if spec.dtype == np.float32:
        return rng.random(spec.shape, np.float32)
    return rng.integers(0, 2**14, spec.shape, np.uint16).view(BFLOAT16)


def peak_bytes(code: str, *arguments) -> int:
    """Peak resident memory of a Python process that runs `code`."""
    command = [sys.executable, "-c", REPORTING + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"^peak (\d+) kB$", done.stdout, re.MULTILINE)[1]) * 1024


def test_converting_4_gib_takes_less_than_1_3_gib_beyond_the_imports(tmp_path):
    source, target, specs = tmp_path / "source", tmp_path / "target", m1_specs()
    assert sum(spec.nbytes for spec in specs) > 4 * GIB
    source.mkdir()
    try:
        values = (value(number, spec) for number, spec in enumerate(specs))
        write_safetensors(source, specs, values, max_shard_bytes=GIB)
        (source / "config.json").write_text(json.dumps(CONFIG))
        imports = peak_bytes("import mmrl.convert")
        peak = peak_bytes(
            "runpy.run_module('mmrl.convert', run_name='__main__', alter_sys=True)",
            f"--source={source}",
            f"--target={target}",
        )
        assert peak - imports <= BAR, f"{(peak - imports) / GIB:.2f} GiB"
        print(f"{(peak - imports) / GIB:.2f} GiB beyond the {imports / GIB:.2f} of the imports")
        with safetensors.safe_open(target / "model.safetensors", framework="np") as held:
            assert set(held.keys()) == {spec.name for spec in specs}
            for number, spec in [*enumerate(specs)][::37]:
                stored = held.get_tensor(spec.name)
                assert stored.dtype == spec.dtype
                assert stored.tobytes() == value(number, spec).tobytes()
    finally:
        shutil.rmtree(tmp_path)
