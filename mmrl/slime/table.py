"""The table: each of slime's flags and what it is in mmrl, or why it is nothing here.

Names, forms and defaults are those of slime 624b824 (slime/utils/arguments.py) and of the Megatron
and SGLang arguments that its scripts give.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrl.slime.refused import REFUSED, SGLANG, Form, Refused


@dataclass(frozen=True)
class Setting:
    """The value of `keys` of the config, in our words where slime has others.

    A switch sets its keys to `value`.
    """

    keys: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    form: Form = "value"
    value: str = "true"


@dataclass(frozen=True)
class Joint:
    """Means something together with other flags or the config: a rule of `mmrl.slime.rules`."""

    rule: str
    form: Form = "value"


@dataclass(frozen=True)
class Always:
    """Asks for what is always so here; `values` are the ones that do, for a flag with a value."""

    why: str
    values: tuple[str, ...] = ()
    form: Form = "switch"


Meaning = Setting | Joint | Always | Refused


def _set(*keys: str, **options) -> Setting:
    return Setting(keys, **options)


def _zero(why: str) -> Always:
    return Always(why, ("0",), "value")


_RL: dict[str, Meaning] = {
    "advantage-estimator": Joint("objective"),
    "eps-clip": Joint("objective"),
    "eps-clip-high": Joint("objective"),
    "eps-clip-c": _set("objective.dual_clip"),
    "disable-grpo-std-normalization": Joint("objective", "switch"),
    "calculate-per-token-loss": _set("objective.aggregation", form="switch", value="batch"),
    "use-kl-loss": Joint("kl", "switch"),
    "kl-loss-coef": Joint("kl"),
    "kl-loss-type": Joint("kl"),
    "entropy-coef": _set("objective.entropy_coefficient"),
    "use-tis": Joint("tis", "switch"),
    "tis-clip": Joint("tis"),
    "tis-clip-low": Joint("tis"),
    "use-rollout-logprobs": Always("the ratio's denominator is the sampler's log-probability"),
    "loss-type": Always("the loss is the policy's", ("policy_loss",), "value"),
    "kl-coef": _zero("a KL in the reward is not there; --use-kl-loss adds it to the loss"),
}

_DATA: dict[str, Meaning] = {
    "prompt-data": _set("data.source"),
    "input-key": _set("data.input_key"),
    "label-key": _set("data.label_key"),
    "metadata-key": _set("data.metadata_key"),
    "tool-key": _set("data.tool_key"),
    "apply-chat-template": _set("data.chat", form="switch"),
    "rollout-shuffle": _set("data.shuffle", form="switch"),
    "rollout-seed": _set("data.seed"),
    "rm-type": Joint("reward"),
    "custom-rm-path": Joint("reward"),
    "group-rm": Joint("reward", "switch"),
    "reward-key": _set("reward_key"),
    "dynamic-sampling-filter-path": Joint("filtering"),
}

_ROLLOUT: dict[str, Meaning] = {
    "num-rollout": Joint("length"),
    "num-epoch": Joint("length"),
    "rollout-batch-size": _set("prompts_per_step"),
    "n-samples-per-prompt": _set("sampling.group_size"),
    "global-batch-size": Joint("batches"),
    "num-steps-per-rollout": Joint("batches"),
    "rollout-max-prompt-len": _set("prompt_length"),
    "rollout-max-response-len": _set("sampling.max_new_tokens"),
    "rollout-temperature": Joint("temperature"),
    "rollout-top-p": _set("sampling.top_p"),
    "rollout-top-k": _set("sampling.top_k", words={"-1": "0"}),
    "rollout-stop": Joint("stops", "values"),
    "rollout-stop-token-ids": Joint("stops", "values"),
    "custom-generate-function-path": Joint("episodes"),
    "rollout-max-context-len": Joint("episodes"),
    "sglang-mem-fraction-static": _set("cache_memory_fraction"),
    "eval-interval": _set("evaluation.interval"),
    "eval-prompt-data": Joint("evaluation", "values"),
    "eval-input-key": Joint("evaluation"),
    "eval-label-key": Joint("evaluation"),
    "eval-temperature": Joint("temperature"),
    "n-samples-per-eval-prompt": Always("an evaluation has one response", ("1",), "value"),
}

_RUN: dict[str, Meaning] = {
    "hf-checkpoint": Joint("checkpoint"),
    "load": Joint("checkpoint"),
    "save": Joint("checkpoint"),
    "save-interval": _set("checkpoint.interval"),
    "seed": _set("seed"),
    "lr": _set("optimizer.learning_rate"),
    "lr-decay-style": Joint("schedule"),
    "lr-decay-iters": Joint("schedule"),
    "lr-warmup-iters": _set("optimizer.warmup_steps"),
    "min-lr": Joint("schedule"),
    "weight-decay": _set("optimizer.weight_decay"),
    "adam-beta1": _set("optimizer.b1"),
    "adam-beta2": _set("optimizer.b2"),
    "adam-eps": _set("optimizer.eps"),
    "clip-grad": _set("optimizer.clip_norm", words={"0": "none", "0.0": "none"}),
    "optimizer": Always("the optimizer is AdamW", ("adam",), "value"),
    "bf16": _set("model.dtype", form="switch", value="bfloat16"),
    "tensor-model-parallel-size": _set("mesh.tensor"),
    "context-parallel-size": _set("mesh.sequence"),
    "expert-model-parallel-size": _set("mesh.expert"),
    "pipeline-model-parallel-size": Always("there are no pipeline stages", ("1",), "value"),
    "expert-tensor-parallel-size": Always("experts are cut by --config.mesh", ("1",), "value"),
    "attention-dropout": _zero("the decoder has no dropout"),
    "hidden-dropout": _zero("the decoder has no dropout"),
    "colocate": Always("sampler and trainer share devices and weights"),
    "accumulate-allreduce-grads-in-fp32": Always("gradients are summed in float32"),
    "attention-softmax-in-fp32": Always("the softmax is in float32"),
}

TABLE: Mapping[str, Meaning] = {**_RL, **_DATA, **_ROLLOUT, **_RUN, **REFUSED}


def meaning(name: str) -> Meaning | None:
    """What slime's flag of this name is here; None if slime has no such flag that we know."""
    if name not in TABLE and name.startswith("sglang-"):
        return SGLANG
    return TABLE.get(name)
