"""The configuration of a training run: one frozen dataclass of the parts' own configs."""

from dataclasses import dataclass, field, replace
from typing import Literal

from mmrl.data import DataConfig
from mmrl.data.curriculum import CurriculumConfig, DataPart
from mmrl.environments.config import EnvironmentConfig, EpisodeConfig
from mmrl.models import DecoderConfig
from mmrl.rewards.mixture import WeightedReward
from mmrl.rl.loss import ObjectiveConfig
from mmrl.rollout import SamplingConfig
from mmrl.rollout.modes import ModeConfig
from mmrl.sharding import MeshConfig
from mmrl.text import CharTokenizer, PretrainedTokenizer
from mmrl.training.checkpoint import CheckpointConfig
from mmrl.training.off_policy import OffPolicyConfig
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.stages import LengthStages


@dataclass(frozen=True)
class WarmStartConfig:
    """A supervised phase before RL, with an optimizer of its own.

    `batch_size` rows of `length` tokens a step, `pack` as many examples in a row as fit. `data` are
    its sources, mixed by their weights; none is the run's data. What is learned are the labels, or
    with `documents` all of the texts, packed and cut at the ends of rows.
    """

    steps: int = 0
    batch_size: int = 64
    length: int = 128
    pack: bool = False
    data: tuple[DataPart, ...] = ()
    documents: bool = False
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)

    def __post_init__(self):
        if any(part.full or part.reward for part in self.data):
            raise ValueError("a supervised phase mixes its data by weight alone")


@dataclass(frozen=True)
class EvaluationConfig:
    """One response to each of `prompts` held-out prompts every `interval` RL steps and at the ends.

    `data` None is the training data's held-out split; the prompts are the same each time.
    """

    interval: int = 50
    prompts: int = 128
    temperature: float = 1.0
    data: DataConfig | None = None

    def __post_init__(self):
        if self.interval < 1 or self.prompts < 1:
            raise ValueError("evaluation: interval and prompts must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """A run: steps of continual pretraining, of a supervised warm start, and `steps` of RL.

    An RL step draws `prompts_per_step` prompts of at most `prompt_length` tokens, samples a group
    for each, and makes `updates_per_rollout` optimizer steps on equal parts of them (16 in the
    MiniMax-M1 paper), each accumulated over `micro_batches`. With `packed_updates` they leave out
    the padding of responses, for one program of each of at most eight sizes; on a mesh each device
    packs its own rows, which `sequence` must not cut.

    `initial` is a Hugging Face directory, a GGUF file or a run directory to start from, `model` its
    config; without it parameters are random.

    With `model.lora` both phases train the adapters alone; the KL's reference is a copy of them.

    `reward` is the import path of a function of a `Sample`, mmrl's or slime's (see
    `mmrl.rewards.slime_functions`), or the parts of a mixture; `reward_key` names the entry of its
    dict that counts, and with `group_reward` it judges a list of samples, a whole group.
    `overlong_buffer` adds DAPO's length
    punishment over that many last tokens; 0 is off. `dynamic_sampling_rounds` above 1 draws again,
    so often at most, until `prompts_per_step` groups have rewards that differ (DAPO), or are kept
    by the function at the import path `dynamic_sampling_filter`.

    With an `environment` a response is an episode in it, in training and in evaluation, under the
    limits of `episodes`; a response of one turn has `episodes.limits.turn_tokens` at most, and
    `sampling.max_new_tokens` is not read. `reward` judges episodes as well: the sample's `reward`
    is what the environment gave, `metadata["answer"]` its answer, and
    `mmrl.rewards.environment:score` is the environment's reward as it is. `episodes.statuses` says
    for single responses too which endings are trained on.

    `custom_generate` is the import path of a function written for slime that makes the episodes in
    place of an environment (see `mmrl.slime.generate`).

    `modes` are the modes of one model: prompts take turns in them, each with its mode's tag, limit
    and temperature, in training and in evaluation; `sampling.max_new_tokens` must hold the longest.
    `cache_memory_fraction` bounds the sampler's cache by a share of the devices' memory: a rollout
    is drawn in as many batches as that takes.

    `curriculum` passes over prompts by their measured pass rate, and the parts of `mixture` come
    gradually in beside `data`, where their rewards are to be others each with its own. `off_policy`
    carries groups and unfinished responses over to the next steps.

    `length_stages` begin with short responses; a stage's limit is then `sampling.max_new_tokens`.

    `objective.kl_coefficient` > 0 keeps the parameters at the start of RL as the KL's reference;
    `objective.tis_high` scores each rollout with the trainer before its first update. Rollouts go
    to disk every `rollouts_interval` steps.
    """

    model: DecoderConfig
    initial: str | None = None
    data: DataConfig = DataConfig()
    tokenizer: CharTokenizer | PretrainedTokenizer = CharTokenizer()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pretraining: WarmStartConfig = WarmStartConfig(documents=True)
    warmstart: WarmStartConfig = WarmStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    steps: int = 100
    prompts_per_step: int = 32
    prompt_length: int = 128
    updates_per_rollout: int = 1
    micro_batches: int = 1
    packed_updates: bool = False
    advantage: Literal[
        "group_relative",
        "leave_one_out",
        "batch_normalised",
        "group_centred",
        "group_batch_normalised",
    ] = "group_relative"
    environment: EnvironmentConfig | None = None
    custom_generate: str | None = None
    episodes: EpisodeConfig = EpisodeConfig()
    reward: str | tuple[WeightedReward, ...] = "mmrl.rewards.reasoning_gym:score"
    reward_key: str | None = None
    group_reward: bool = False
    reward_timeout_seconds: float = 60.0
    reward_workers: int = 16
    overlong_buffer: int = 0
    dynamic_sampling_rounds: int = 1
    dynamic_sampling_filter: str | None = None
    modes: dict[str, ModeConfig] = field(default_factory=dict)
    cache_memory_fraction: float | None = None
    length_stages: LengthStages = LengthStages()
    curriculum: CurriculumConfig = CurriculumConfig()
    mixture: tuple[DataPart, ...] = ()
    off_policy: OffPolicyConfig = OffPolicyConfig()
    rollouts_interval: int = 10
    seed: int = 0

    def __post_init__(self):
        parts = self.updates_per_rollout * self.micro_batches
        if parts < 1 or self.prompts_per_step < 1 or self.prompts_per_step % parts:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} must be a multiple of "
                f"updates_per_rollout × micro_batches = {parts}"
            )
        if self.model.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} is smaller than the tokenizer's "
                f"{self.tokenizer.vocab_size}"
            )
        if self.data.chat and self.tokenizer.chat_template is None:
            raise ValueError(
                "data.chat needs a tokenizer with a chat template: set tokenizer.template of a "
                "PretrainedTokenizer"
            )
        if self.overlong_buffer > self.response_length:
            raise ValueError(
                f"overlong_buffer must not exceed a response's {self.response_length} tokens"
            )
        if not isinstance(self.reward, str) and (self.group_reward or self.reward_key):
            raise ValueError("group_reward and reward_key are for a single reward, not a mixture")
        if self.has_episodes and (self.modes or self.cache_memory_fraction):
            raise ValueError(
                "modes and cache_memory_fraction are for single responses: with episodes, "
                "episodes.rows bounds the cache"
            )
        if self.custom_generate and (self.environment or self.sampling.truncates):
            raise ValueError(
                "custom_generate takes the place of an environment, and samples without top-k and "
                "top-p: it does not tell which tokens those left"
            )
        for name in ("dynamic_sampling_rounds", "rollouts_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.group_reward and any(part.reward for part in self.mixture):
            raise ValueError("with group_reward a part of the mixture has no reward of its own")
        longest = max((mode.max_new_tokens for mode in self.modes.values()), default=0)
        if longest > self.sampling.max_new_tokens:
            raise ValueError(
                f"a mode has max_new_tokens={longest}, more than sampling.max_new_tokens="
                f"{self.sampling.max_new_tokens}"
            )
        if (self.modes or self.has_episodes) and self.off_policy.carries:
            raise ValueError("modes and episodes need off_policy.max_staleness=0")
        if self.has_episodes and self.length_stages.stages:
            raise ValueError("length_stages are for single responses: set episodes.limits")
        if self.modes and self.prompts_per_step < len(self.modes):
            raise ValueError(f"prompts_per_step must be at least {len(self.modes)}, one a mode")
        if not 0 < (self.cache_memory_fraction or 1.0) <= 1:
            raise ValueError(
                f"cache_memory_fraction must lie in (0, 1], got {self.cache_memory_fraction}"
            )

    @property
    def phases(self) -> dict[str, int]:
        """The phases in order, with their steps."""
        return {
            "pretraining": self.pretraining.steps,
            "warmstart": self.warmstart.steps,
            "rl": self.steps,
        }

    def at_stage(self, index: int) -> "TrainConfig":
        """The config as stage `index` of `length_stages` changes it; without stages as it is.

        Raises ValueError where the rest of the config does not fit the stage.
        """
        if not self.length_stages.stages:
            return self
        stage = self.length_stages.stages[index]
        given = {name: value for name, value in vars(stage).items() if value is not None}
        objective = {name: given[name] for name in ("eps_high", "aggregation") if name in given}
        optimizer = {name: given[name] for name in ("clip_norm",) if name in given}
        return replace(
            self,
            sampling=replace(self.sampling, max_new_tokens=stage.max_new_tokens),
            objective=replace(self.objective, **objective),
            optimizer=replace(self.optimizer, **optimizer),
        )

    @property
    def has_episodes(self) -> bool:
        """Whether responses are episodes."""
        return self.environment is not None or self.custom_generate is not None

    @property
    def response_length(self) -> int:
        """The most tokens after a prompt."""
        return self.episodes.limits.tokens if self.has_episodes else self.sampling.max_new_tokens
