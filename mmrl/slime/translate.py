"""A training config from slime's flags, alone or over a config file.

Without a config file the flags make all of it: the model of --hf-checkpoint, and mmrl's own
defaults for what no flag says (32 prompts with 8 samples each, CISPO, the paper's token weights),
since slime's lead nowhere without further flags: one sample a prompt has nothing to be compared
with. What a flag says means what it means in slime, silent defaults of its partners included:
naming an estimator or one clip bound sets both bounds as slime does (see `rules.objective`).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from mmrl import config as configs
from mmrl.errors import UserError, user_mistakes
from mmrl.models import DecoderConfig, config_of, minimax_m1
from mmrl.models.pretrained.orbax import is_run
from mmrl.rewards.slime_functions import Arguments
from mmrl.slime.command_line import Given
from mmrl.slime.rules import ESTIMATORS, RULES, Overrides, Settings, longest_prompt
from mmrl.slime.table import TABLE, Always, Joint, Refused, Setting, meaning
from mmrl.text import CharTokenizer, load_tokenizer
from mmrl.training.config import TrainConfig

NO_MODEL = (
    "No --hf-checkpoint: the policy is a small decoder of MiniMax-M1's shape over characters, with "
    "random parameters"
)


@dataclass(frozen=True)
class Translation:
    """The config, the run directory that the flags name or stand for, and what to tell the user."""

    config: TrainConfig
    workdir: Path
    warnings: tuple[str, ...]


def configure(
    path: str | None, workdir: str | None, given: Given, overrides: Mapping[str, str]
) -> tuple[TrainConfig, Path]:
    """Config and run directory from a command line: a config file, slime's flags, or both."""
    if path is None:
        if not given:
            raise UserError("name a config, --config=FILE, or a model, --hf-checkpoint DIR")
        base = None
    else:
        base = configs.load(path)
        if not isinstance(base, TrainConfig):
            raise UserError(f"{path}: get_config() must return a TrainConfig")
        if workdir is None and "save" not in given:
            raise UserError("name the directory of the run: --workdir=DIR")
    translation = translate(given, base, overrides, workdir)
    for warning in translation.warnings:
        logging.warning("%s.", warning)
    if not workdir and "save" not in given:
        logging.info("The directory of the run is %s.", translation.workdir)
    return translation.config, translation.workdir


def translate(
    given: Given,
    base: TrainConfig | None = None,
    overrides: Mapping[str, str] | None = None,
    workdir: str | None = None,
) -> Translation:
    """The run that slime's flags `given` ask for, over the config `base` if there is one.

    `overrides` are texts of `--config.KEY=TEXT`, which go along unless a flag sets the same key.
    Without a directory, by `workdir` or --save, it is one of these flags' own under runs/, so that
    the same command goes on. Raises `UserError` for flags that have no meaning here, with the
    reason of each, and for two that contradict each other.
    """
    overrides = dict(overrides or {})
    _refuse(given)
    directory = _workdir(given, overrides, workdir)
    start, sources, warnings = _start(given, base, directory)
    plain, owners = _settings(given)
    settings = Settings(start, base is None, {}, warnings)
    settings.texts |= sources | plain
    owners |= dict.fromkeys(sources, "hf-checkpoint")
    _check_conflicts(owners, overrides)
    settings.texts |= overrides
    for name, rule in RULES.items():
        flags = [f for f in given if isinstance(m := TABLE.get(f), Joint) and m.rule == name]
        if flags:
            found = rule(given, settings)
            _check_conflicts(dict.fromkeys(found, flags[0]), overrides)
            owners |= dict.fromkeys(found, flags[0])
            settings.texts |= found
    if base is None:
        _complete(settings)
    return Translation(_override(settings, owners), directory, tuple(settings.warnings))


def _refuse(given: Given) -> None:
    reasons = []
    for flag, values in given.items():
        found = meaning(flag)
        if isinstance(found, Refused):
            reasons.append(f"--{flag} ({found.why})")
        if isinstance(found, Always) and values and not _is_among(values[0], found.values):
            allowed = " or ".join(found.values)
            reasons.append(f"--{flag} {values[0]} ({found.why}; only {allowed} is the same here)")
    if reasons:
        raise UserError(f"leave out what has no meaning here: {'; '.join(reasons)}")


def _is_among(text: str, values: tuple[str, ...]) -> bool:
    """As numbers where both are."""
    try:
        return float(text) in [float(value) for value in values]
    except ValueError:
        return text in values


def _workdir(given: Given, overrides: Overrides, workdir: str | None) -> Path:
    [save] = given.get("save", (workdir,))
    if workdir is not None and save is not None and Path(workdir) != Path(save):
        raise UserError(f"--save {save} and --workdir {workdir} are two names of one directory")
    if save is not None:
        return Path(save)
    digest = hashlib.blake2b(repr((sorted(given.items()), sorted(overrides.items()))).encode())
    return Path("runs") / f"slime-{digest.hexdigest()[:8]}"


def _start(
    given: Given, base: TrainConfig | None, workdir: Path
) -> tuple[TrainConfig, Overrides, list[str]]:
    """The config with the model that the flags name, its keys that they set, and warnings."""
    [checkpoint], [load] = given.get("hf-checkpoint", ("",)), given.get("load", ("",))
    if load and Path(load) == workdir:
        load = ""  # where a run goes on by itself
    source = load or checkpoint
    if not source:
        if base is not None:
            return base, {}, []
        tokenizer = CharTokenizer(unknown="replace")
        with user_mistakes():
            return (
                TrainConfig(small_model(tokenizer.vocab_size), tokenizer=tokenizer),
                {},
                [NO_MODEL],
            )
    model = _model(source, "load" if load else "hf-checkpoint")
    found: dict[str, Any] = dict(
        initial=source, tokenizer=load_tokenizer(checkpoint or source), model=model
    )
    with user_mistakes():
        if base is None:
            return TrainConfig(**found), {"initial": source}, []
        found["model"] = dataclasses.replace(model, lora=base.model.lora, remat=base.model.remat)
        return dataclasses.replace(base, **found), {"initial": source}, []


def _model(source: str, flag: str) -> DecoderConfig:
    """The config of the model at `source`, to be trained: with parameters in float32."""
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"--{flag} {source}: no such directory or file. Nothing is downloaded: give the path "
            "of a local copy"
        )
    if is_run(path):
        return configs.load_json(TrainConfig, path / "config.json").model
    return dataclasses.replace(config_of(path), param_dtype="float32")


def small_model(vocab_size: int) -> DecoderConfig:
    """MiniMax-M1's shape, small: seven lightning layers and a softmax layer, of four experts."""
    return minimax_m1(
        vocab_size=vocab_size,
        hidden_size=64,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        rotary_dim=8,
        num_experts=4,
        param_dtype="float32",
        dtype="float32",
    )


def _settings(given: Given) -> tuple[Overrides, dict[str, str]]:
    """{key: text} of the flags that are settings, and {key: flag}."""
    texts: Overrides = {}
    owners: dict[str, str] = {}
    for flag, values in given.items():
        found = TABLE.get(flag)
        if isinstance(found, Setting):
            text = values[0] if values else found.value
            texts |= dict.fromkeys(found.keys, found.words.get(text, text))
            owners |= dict.fromkeys(found.keys, flag)
    return texts, owners


def _check_conflicts(owners: Mapping[str, str], overrides: Mapping[str, str]) -> None:
    for key in owners.keys() & overrides.keys():
        raise UserError(f"--{owners[key]} and --config.{key} set the same: leave one of them out")


def _complete(settings: Settings) -> None:
    """What a config file would have said."""
    if "data.source" in settings.texts and "reward" not in settings.texts:
        raise UserError(
            "nothing says how the responses are judged: give --rm-type or --custom-rm-path"
        )
    if "prompt_length" not in settings.texts:
        with user_mistakes():
            settings.texts["prompt_length"] = str(longest_prompt(settings))


def _override(settings: Settings, owners: Mapping[str, str]) -> TrainConfig:
    """The config; an error about a key that a flag set begins with the flag."""
    try:
        return configs.override(settings.start, settings.texts)
    except UserError as error:
        for key, flag in owners.items():
            if str(error).startswith(f"config.{key}:"):
                raise UserError(f"--{flag}: {str(error).partition(': ')[2]}") from error
        raise


def arguments(config: TrainConfig) -> Arguments:
    """slime's `args` as a function written for slime reads them, from the config."""
    found = {}
    for flag, setting in TABLE.items():
        if isinstance(setting, Setting):
            value: Any = config
            for name in setting.keys[0].split("."):
                value = getattr(value, name)
            if setting.form == "switch" and setting.value != "true":
                value = value == setting.value
            found[flag.replace("-", "_")] = value
    estimators = {ours: flag for flag, ours in reversed(ESTIMATORS.items())}
    objective, sampling = config.objective, config.sampling
    samples = config.prompts_per_step * sampling.group_size
    return Arguments(
        **found
        | dict(
            hf_checkpoint=config.initial,
            advantage_estimator=estimators.get((objective.name, config.advantage), objective.name),
            use_kl_loss=objective.kl_coefficient > 0,
            kl_loss_coef=objective.kl_coefficient,
            rm_type=None,
            custom_rm_path=config.reward if isinstance(config.reward, str) else None,
            custom_generate_function_path=config.custom_generate,
            group_rm=config.group_reward,
            num_rollout=config.steps,
            global_batch_size=samples // config.updates_per_rollout,
            rollout_temperature=sampling.temperature,
            rollout_top_k=sampling.top_k or -1,
            eval_temperature=config.evaluation.temperature,
        )
    )
