"""One fixed workload of RL steps, the one that the peers' scripts run, and mmrl's figures on it.

A decoder of Qwen2's shape with random weights; AdamW; one update a batch; the reward is the share
of even token ids; no response ends early, except in C, where each has a random limit.
"""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from mmrl.benchmark.timing import Compilations, matrix_rate, read_bandwidth
from mmrl.models import Decoder, DecoderConfig
from mmrl.rl.advantages import group_relative
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import Rollout, SamplingConfig, generate
from mmrl.rollout.sampler import packed_size
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.training.flops import flops_per_token
from mmrl.training.optimizer import OptimizerConfig, make_optimizer
from mmrl.training.update import policy_update

QWEN2 = DecoderConfig(
    vocab_size=1024,
    hidden_size=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=1024,
    attention_bias=True,
    scan_layers=False,
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """`prompts` of `prompt_length` tokens, `samples` responses of `new_tokens` to each.

    With `shortest` a response has a random length between it and `new_tokens`.
    """

    prompts: int = 8
    samples: int = 8
    prompt_length: int = 64
    new_tokens: int = 128
    shortest: int | None = None
    micro_batches: int = 1
    model: DecoderConfig = QWEN2

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def limits(self, rng: np.random.Generator) -> np.ndarray:
        """Tokens of each response, [P, G] int32."""
        shape = (self.prompts, self.samples)
        if self.shortest is None:
            return np.full(shape, self.new_tokens, np.int32)
        return rng.integers(self.shortest, self.new_tokens + 1, shape).astype(np.int32)


WORKLOADS = {
    "A": Workload(micro_batches=4),
    "B": Workload(prompts=1, new_tokens=512),
    "C": Workload(micro_batches=4, shortest=8),
}


@dataclasses.dataclass
class Step:
    """Where the seconds of one step went, and what it drew."""

    rollout_seconds: float
    update_seconds: float
    seconds: float
    tokens: int
    reward: float


def run(workload: Workload, steps: int) -> tuple[list[Step], int]:
    """RL steps, the first of which compiles, and the compilations after it."""
    model = Decoder(workload.model, nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4))
    opt_state = jax.jit(optimizer.init)(params)
    sampling = SamplingConfig(
        group_size=workload.samples,
        max_new_tokens=workload.new_tokens,
        stop_ids=(workload.model.vocab_size,),
        compactions=0 if workload.shortest is None else 3,
    )
    rng, lengths = np.random.default_rng(1), np.full(workload.prompts, workload.prompt_length)
    compilations, warm, done = Compilations(), 0, []
    for step in range(steps):
        shape = (workload.prompts, workload.prompt_length)
        prompts = rng.integers(4, workload.model.vocab_size, shape).astype(np.int32)
        limits = workload.limits(rng)
        start = time.perf_counter()
        rollout = generate(
            nnx.merge(graphdef, params),
            (prompts, lengths.astype(np.int32)),
            sampling,
            jax.random.key(step),
            max_new_tokens=limits,
        )
        rollout = with_rewards(rollout)
        middle = time.perf_counter()
        params, opt_state, metrics = policy_update(
            params,
            opt_state,
            rollout,
            {},
            graphdef=graphdef,
            optimizer=optimizer,
            objective=ObjectiveConfig(),
            temperature=1.0,
            micro_batches=workload.micro_batches,
            packed=packed_size(
                np.asarray(rollout.lengths), workload.new_tokens, workload.micro_batches
            ),
        )
        jax.device_get(metrics)
        end = time.perf_counter()
        tokens = int(np.sum(rollout.lengths))
        done.append(
            Step(middle - start, end - middle, end - start, tokens, float(rollout.reward.mean()))
        )
        warm = compilations.count if step == 0 else warm
    return done, compilations.count - warm


def with_rewards(rollout: Rollout) -> Rollout:
    """The share of even token ids as the reward, computed on the host, and the advantages."""
    tokens, mask = jax.device_get((rollout.tokens, rollout.mask))
    reward = ((tokens % 2 == 0) * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    reward = reward.astype(np.float32)
    return rollout.replace(reward=reward, advantages=group_relative(reward))


def attention_flops(config: DecoderConfig, queries: float, keys: float) -> float:
    """Forward FLOPs of softmax attention, `keys` seen by each query on average, over all layers."""
    softmax = sum(n for kind, n in config.runs if kind == "softmax") * config.num_groups
    return 4.0 * softmax * config.num_heads * config.head_dim * queries * keys


def forward_flops(workload: Workload, tokens: int) -> float:
    """Of reading each prompt once and `tokens` of responses, token by token or all at once.

    The last token of a prompt is read with each response, and the last of a response not at all.
    """
    config, before = workload.model, workload.prompt_length - 1
    prompt, mean = workload.prompts * before, tokens / workload.rows
    return (
        flops_per_token(config) * (prompt + tokens)
        - 2.0 * config.vocab_size * config.hidden_size * prompt
        + attention_flops(config, prompt, before / 2)
        + attention_flops(config, tokens, before + mean / 2)
    )


def figures(workload: Workload, steps: int, devices: int = 1) -> dict[str, object]:
    """Medians over the steps after the first, and their shares of what this machine can do.

    `rollout_of_roofline`: the least seconds that its FLOPs at the rate of a 2,048³ product, or the
    reads of weights and cache at the memory bandwidth, would take, over those it took.
    `update_mfu`: 3 × the forward FLOPs at that rate over the seconds of the update. The prompts are
    shared by `devices` of a CPU; one that works alone, as for the rate, has all cores.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    rate, bandwidth = matrix_rate(), read_bandwidth()
    with jax.set_mesh(make_mesh(MeshConfig())):
        done, recompilations = run(workload, steps)
    measured = done[1:] or done

    def median(value: Callable[[Step], float]) -> float:
        return statistics.median(map(value, measured))

    def floor(step: Step) -> float:
        return forward_flops(workload, step.tokens) / rate

    return {
        "framework": "mmrl",
        "step_s": median(lambda s: s.seconds),
        "first_step_s": done[0].seconds,
        "rollout_s": median(lambda s: s.rollout_seconds),
        "update_s": median(lambda s: s.update_seconds),
        "tokens_per_s": median(lambda s: s.tokens / s.seconds),
        "rollout_tokens_per_s": median(lambda s: s.tokens / s.rollout_seconds),
        "rollout_of_roofline": median(
            lambda s: max(floor(s), read_bytes(workload, s.tokens) / bandwidth) / s.rollout_seconds
        ),
        "update_mfu": median(lambda s: 3 * floor(s) / s.update_seconds),
        "recompilations": recompilations,
        "matrix_gflops": rate / 1e9,
        "read_gb_s": bandwidth / 1e9,
        "rewards": [round(s.reward, 4) for s in done],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "all": [round(s.seconds, 3) for s in done],
    }


def read_bytes(workload: Workload, tokens: int) -> float:
    """What the decode steps of a rollout read: the weights a step, and each row's filled cache."""
    config = workload.model
    per_step = flops_per_token(config) / 2 * 4
    softmax = sum(n for kind, n in config.runs if kind == "softmax") * config.num_groups
    per_key = softmax * 2 * config.num_kv_heads * config.head_dim * 4
    mean = tokens / workload.rows
    shared = workload.prompts * (workload.prompt_length - 1) * per_key
    return workload.new_tokens * (per_step + shared) + tokens * mean / 2 * per_key
