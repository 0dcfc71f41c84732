"""What slime's flags mean that depend on each other, or on the rest of the config.

A rule takes the flags that are given and the settings so far, and returns {dotted key: text} as
`mmrl.config.override` takes it. Rules run in the order of `RULES`: later ones see earlier ones'.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl import config as configs
from mmrl.data import examples, prompt_tokens
from mmrl.errors import UserError, nearest
from mmrl.rewards.slime_types import find_type
from mmrl.rl.conventions import slime_bounds
from mmrl.slime.command_line import Given
from mmrl.training.config import TrainConfig

ESTIMATORS = {
    "grpo": ("grpo", "group_relative"),
    "gspo": ("gspo", "group_relative"),
    "cispo": ("cispo", "group_relative"),
    "reinforce_plus_plus": ("ppo", "batch_normalised"),
    "reinforce_plus_plus_baseline": ("ppo", "group_batch_normalised"),
}
KL_KINDS = {"k1": "k1", "k2": "k2", "k3": "k3", "low_var_kl": "k3"}
FILTERS = "slime.rollout.filter_hub.dynamic_sampling_filters."
INFORMATIVE = ("check_reward_nonzero_std", "check_reward_nonzero_std_with_fallback")
ROUNDS = 10  # slime draws without end until a batch is full
GENERATED_PROMPT = 512  # tokens that a generated task's prompt may have

Overrides = dict[str, str]


@dataclass
class Settings:
    """The config that the overrides `texts` change; `warnings` are for the user.

    `alone` says that there is no config file, so that slime's flags must say all.
    """

    start: TrainConfig
    alone: bool
    texts: Overrides
    warnings: list[str] = field(default_factory=list)

    def value(self, key: str) -> Any:
        """The value of a dotted key as the overrides so far leave it."""
        value: Any = self.start
        kind: Any = TrainConfig
        for name in key.split("."):
            kind = configs.field_kinds(type(value))[name]
            value = getattr(value, name)
        text = self.texts.get(key)
        return value if text is None else configs.parse(kind, text, f"config.{key}")

    def part(self, name: str) -> Any:
        """The part of the config of this name as the overrides so far leave it."""
        prefix = f"{name}."
        changes = {k.removeprefix(prefix): v for k, v in self.texts.items() if k.startswith(prefix)}
        return configs.override(getattr(self.start, name), changes, f"config.{name}")


Rule = Callable[[Given, Settings], Overrides]


def objective(given: Given, settings: Settings) -> Overrides:
    """Estimator and both clip bounds, of which slime sets none alone."""
    found: Overrides = {}
    if "advantage-estimator" in given:
        name = _choice(given, "advantage-estimator", [*ESTIMATORS, "ppo"])
        if name == "ppo":
            raise UserError(
                "--advantage-estimator ppo needs a critic, which mmrl has not: "
                f"{', '.join(ESTIMATORS)} are there, and --config.objective.name=ppo has its clip"
            )
        found["objective.name"], found["advantage"] = ESTIMATORS[name]
    relative = found.get("advantage", "group_relative") == "group_relative"
    if relative and "disable-grpo-std-normalization" in given:
        found["advantage"] = "group_centred"
    if not {"advantage-estimator", "eps-clip", "eps-clip-high"} & given.keys():
        return found
    clip = _number(given, "eps-clip", 0.2)
    assert clip is not None
    low, high = slime_bounds(clip, _number(given, "eps-clip-high", None))
    name = found.get("objective.name", settings.value("objective.name"))
    if name == "cispo" and low is not None:
        settings.warnings.append(
            f"CISPO with slime's clip keeps ratios in [{1 - low:g}, {1 + high:g}]: --eps-clip is "
            f"{clip:g}{'' if 'eps-clip' in given else ' where it is not given'}, a lower bound "
            "that the MiniMax-M1 paper does not have. The paper's setting is --eps-clip 1.0 (none "
            "below); slime's own recipe has --eps-clip-high 4.0 beside it"
        )
    bounds = {"objective.eps_low": "none" if low is None else repr(low)}
    return found | bounds | {"objective.eps_high": repr(high)}


def kl(given: Given, settings: Settings) -> Overrides:
    """slime reads coefficient and kind with --use-kl-loss only, and its kind is k1 by default."""
    kind = KL_KINDS[_choice(given, "kl-loss-type", KL_KINDS, "k1")]
    coefficient = _number(given, "kl-loss-coef", 0.0)
    if "use-kl-loss" not in given:
        if coefficient:
            settings.warnings.append(
                f"--kl-loss-coef {coefficient:g} has no effect without --use-kl-loss, as in slime"
            )
        return {}
    return {"objective.kl_kind": kind, "objective.kl_coefficient": repr(coefficient)}


def tis(given: Given, settings: Settings) -> Overrides:
    """slime reads the bounds with --use-tis only."""
    if "use-tis" not in given:
        settings.warnings.append("--tis-clip has no effect without --use-tis, as in slime")
        return {}
    if "use-rollout-logprobs" in given:
        raise UserError("--use-tis corrects for what --use-rollout-logprobs switches off: choose")
    low, high = _number(given, "tis-clip-low", 0.0), _number(given, "tis-clip", 2.0)
    return {"objective.tis_low": repr(low), "objective.tis_high": repr(high)}


def reward(given: Given, settings: Settings) -> Overrides:
    """A custom function comes before --rm-type, as in slime."""
    path, [kind] = given.get("custom-rm-path"), given.get("rm-type", ("",))
    if path:
        group = {"group_reward": "true"} if "group-rm" in given else {}
        return {"reward": path[0]} | group
    if kind == "custom":
        raise UserError("--rm-type custom needs --custom-rm-path module.function")
    if not kind:
        raise UserError("--group-rm needs --custom-rm-path module.function")
    find_type(kind)
    return {"reward": f"mmrl.rewards.slime_types:{kind}"}


def filtering(given: Given, settings: Settings) -> Overrides:
    """A filter needs further rounds of sampling, of which slime bounds the number not at all."""
    [path] = given["dynamic-sampling-filter-path"]
    builtin = path.replace(":", ".") in [FILTERS + name for name in INFORMATIVE]
    found = {"dynamic_sampling_filter": "none" if builtin else path}
    rounds = "dynamic_sampling_rounds"
    if rounds not in settings.texts and settings.value(rounds) == 1:
        found[rounds] = str(ROUNDS)
    return found


def temperature(given: Given, settings: Settings) -> Overrides:
    """Evaluation is at the rollouts' temperature unless it has its own."""
    found = {}
    if "rollout-temperature" in given:
        value = _number(given, "rollout-temperature", 1.0)
        if not value or value < 0:
            raise UserError(f"--rollout-temperature must be positive, got {value}")
        found["sampling.temperature"] = repr(value)
        if "evaluation.temperature" not in settings.texts:
            found["evaluation.temperature"] = repr(value)
    if "eval-temperature" in given:
        found["evaluation.temperature"] = given["eval-temperature"][0]
    return found


def stops(given: Given, settings: Settings) -> Overrides:
    """Stop tokens beside the tokenizer's own; a text must be one token."""
    tokenizer = settings.part("tokenizer")
    ids = list(tokenizer.stop_ids)
    for text in given.get("rollout-stop", ()):
        encoded = tokenizer.encode(text, special=True)
        if len(encoded) != 1:
            raise UserError(
                f"--rollout-stop {text!r} is {len(encoded)} tokens of this tokenizer: responses "
                "end at a token"
            )
        ids += encoded
    try:
        ids += map(int, given.get("rollout-stop-token-ids", ()))
    except ValueError as error:
        raise UserError(f"--rollout-stop-token-ids: {error}") from None
    return {"sampling.stop_ids": f"({', '.join(map(str, dict.fromkeys(ids)))},)"}


def episodes(given: Given, settings: Settings) -> Overrides:
    """A function of the user's makes the responses; slime's limit of one is that of each turn."""
    if "custom-generate-function-path" not in given:
        raise UserError(
            "leave out --rollout-max-context-len: give --rollout-max-prompt-len and "
            "--rollout-max-response-len, of which it is the sum"
        )
    turn, prompt = settings.value("sampling.max_new_tokens"), settings.value("prompt_length")
    if settings.alone and "prompt_length" not in settings.texts:
        prompt = longest_prompt(settings)
    context = _integer(given, "rollout-max-context-len")
    tokens = turn if context is None else context - prompt
    if tokens < 1:
        raise UserError(
            f"--rollout-max-context-len {context} leaves nothing after a prompt of {prompt} tokens"
        )
    found = {
        "custom_generate": given["custom-generate-function-path"][0],
        "episodes.limits.turn_tokens": str(min(turn, tokens)),
        "episodes.limits.tokens": str(tokens),
    }
    if not {"rm-type", "custom-rm-path"} & given.keys() and "reward" not in settings.texts:
        found["reward"] = "mmrl.rewards.environment:score"
    return found


def batches(given: Given, settings: Settings) -> Overrides:
    """Optimizer steps a rollout: rollout-batch-size · samples = global-batch-size · steps."""
    prompts, group = settings.value("prompts_per_step"), settings.value("sampling.group_size")
    samples, steps = prompts * group, _integer(given, "num-steps-per-rollout")
    size = _integer(given, "global-batch-size")
    if size is None:
        assert steps is not None
        size, rest = divmod(samples, max(steps, 1))
    else:
        rest = samples % max(size, 1)
    if rest or size < 1 or size % group or (steps is not None and steps * size != samples):
        raise UserError(
            f"{prompts} prompts of {group} samples are {samples} a rollout, which must be "
            "--global-batch-size times --num-steps-per-rollout, with whole groups in each step"
        )
    return {"updates_per_rollout": str(samples // size)}


def length(given: Given, settings: Settings) -> Overrides:
    """--num-rollout wins over --num-epoch, as in slime."""
    if "num-rollout" in given:
        return {"steps": given["num-rollout"][0]}
    rows = len(examples(settings.part("data")))
    each = rows // settings.value("prompts_per_step")
    if not each:
        raise UserError(f"--num-epoch: {rows} prompts are less than one --rollout-batch-size")
    return {"steps": str(each * (_integer(given, "num-epoch") or 0))}


def schedule(given: Given, settings: Settings) -> Overrides:
    """As in Megatron the decay lasts the whole run unless --lr-decay-iters says less."""
    style = _choice(given, "lr-decay-style", ("constant", "linear", "cosine"), "linear")
    found = {"optimizer.schedule": style}
    if style != "constant":
        whole = settings.value("steps") * settings.value("updates_per_rollout")
        found["optimizer.decay_steps"] = given.get("lr-decay-iters", (str(whole),))[0]
    if "min-lr" in given:
        rate, least = settings.value("optimizer.learning_rate"), _number(given, "min-lr", 0.0)
        found["optimizer.final_fraction"] = repr(least / rate)
    return found


def evaluation(given: Given, settings: Settings) -> Overrides:
    """One named data set, with the fields of the training data unless they are given."""
    names = given.get("eval-prompt-data", ())
    if len(names) not in (1, 2):
        raise UserError(f"--eval-prompt-data is NAME PATH of one data set, got {' '.join(names)!r}")
    data = settings.part("data")
    fields = {
        "source": names[-1],
        "input_key": given.get("eval-input-key", (data.input_key,))[0],
        "label_key": given.get("eval-label-key", (data.label_key,))[0],
        "metadata_key": data.metadata_key,
        "tool_key": data.tool_key,
        "prompt_suffix": data.prompt_suffix,
        "chat": str(data.chat),
        "system_prompt": data.system_prompt,
        "shuffle": "false",
    }
    return {f"evaluation.data.{k}": v for k, v in fields.items() if v is not None}


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        objective,
        kl,
        tis,
        reward,
        filtering,
        temperature,
        stops,
        episodes,
        batches,
        length,
        schedule,
        evaluation,
    )
}


def longest_prompt(settings: Settings) -> int:
    """Tokens of the longest prompt of a file; for tasks that are generated a bound."""
    data, tokenizer = settings.part("data"), settings.part("tokenizer")
    if data.source == "reasoning_gym":
        return GENERATED_PROMPT
    rows = examples(data)
    return max(len(prompt_tokens(rows[i], tokenizer)) for i in range(len(rows)))


def _choice(given: Given, flag: str, choices: Any, default: str = "") -> str:
    [value] = given.get(flag, (default,))
    if value not in choices:
        raise UserError(
            f"--{flag} must be one of {', '.join(choices)}, got {value!r}.{nearest(value, choices)}"
        )
    return value


def _number(given: Given, flag: str, default: float | None) -> float | None:
    return _parsed(float, given, flag) if flag in given else default


def _integer(given: Given, flag: str) -> int | None:
    return _parsed(int, given, flag) if flag in given else None


def _parsed(kind: Callable[[str], Any], given: Given, flag: str) -> Any:
    try:
        return kind(given[flag][0])
    except ValueError:
        raise UserError(
            f"--{flag}: expected {'an' if kind is int else 'a'} {kind.__name__}, "
            f"got {given[flag][0]!r}"
        ) from None
