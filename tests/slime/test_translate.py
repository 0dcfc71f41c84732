"""What slime's flags make of a training config."""

import json
from pathlib import Path

import pytest

from mmrl import config as configs
from mmrl.data import DataConfig
from mmrl.errors import UserError
from mmrl.rl.loss import ObjectiveConfig
from mmrl.slime import Translation, arguments, split_argv, translate

CONFIG = Path(__file__).parents[1] / "configs" / "copy_letter.py"
CISPO = "--advantage-estimator cispo"


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{letter}>", "label": letter} for letter in "abcd"] * 4
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return configs.load(CONFIG)


def over(base, line: str, **overrides: str) -> Translation:
    rest, given = split_argv(["x", *line.split()])
    assert rest == ["x"]
    texts = {key.replace("__", "."): text for key, text in overrides.items()}
    return translate(given, base, texts, "run")


def get(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    "flag, key, value",
    [
        ("--n-samples-per-prompt 4", "sampling.group_size", 4),
        ("--rollout-batch-size 16", "prompts_per_step", 16),
        ("--rollout-max-response-len 9", "sampling.max_new_tokens", 9),
        ("--rollout-max-prompt-len 11", "prompt_length", 11),
        ("--rollout-temperature 0.7", "sampling.temperature", 0.7),
        ("--rollout-temperature 0.7", "evaluation.temperature", 0.7),
        ("--rollout-top-p 0.9", "sampling.top_p", 0.9),
        ("--rollout-top-k 20", "sampling.top_k", 20),
        ("--rollout-top-k -1", "sampling.top_k", 0),
        ("--prompt-data d.parquet@[2:9]", "data.source", "d.parquet@[2:9]"),
        ("--input-key question", "data.input_key", "question"),
        ("--label-key answer", "data.label_key", "answer"),
        ("--metadata-key m", "data.metadata_key", "m"),
        ("--tool-key t", "data.tool_key", "t"),
        ("--rollout-seed 7", "data.seed", 7),
        ("--custom-rm-path rewards.slime_style.reward", "reward", "rewards.slime_style.reward"),
        ("--rm-type boxed_f1", "reward", "mmrl.rewards.slime_types:boxed_f1"),
        ("--reward-key acc", "reward_key", "acc"),
        ("--num-rollout 3", "steps", 3),
        ("--num-epoch 3", "steps", 6),  # 16 rows, 8 prompts a step
        ("--global-batch-size 16", "updates_per_rollout", 4),  # of 8 prompts with 8 samples
        ("--num-steps-per-rollout 4", "updates_per_rollout", 4),
        ("--seed 5", "seed", 5),
        ("--lr 1e-3", "optimizer.learning_rate", 1e-3),
        ("--weight-decay 0.1", "optimizer.weight_decay", 0.1),
        ("--adam-beta1 0.8", "optimizer.b1", 0.8),
        ("--adam-beta2 0.98", "optimizer.b2", 0.98),
        ("--adam-eps 1e-8", "optimizer.eps", 1e-8),
        ("--clip-grad 0.5", "optimizer.clip_norm", 0.5),
        ("--clip-grad 0.0", "optimizer.clip_norm", None),
        ("--lr-warmup-iters 4", "optimizer.warmup_steps", 4),
        ("--lr-decay-style cosine", "optimizer.decay_steps", 12),  # 6 steps of 2 updates
        ("--lr-decay-style linear --lr-decay-iters 5", "optimizer.decay_steps", 5),
        ("--lr 1e-3 --lr-decay-style cosine --min-lr 1e-4", "optimizer.final_fraction", 0.1),
        ("--entropy-coef 0.01", "objective.entropy_coefficient", 0.01),
        ("--use-kl-loss --kl-loss-coef 0.02", "objective.kl_coefficient", 0.02),
        ("--use-kl-loss --kl-loss-coef 0.02", "objective.kl_kind", "k1"),
        ("--use-kl-loss --kl-loss-type low_var_kl", "objective.kl_kind", "k3"),
        ("--use-tis", "objective.tis_high", 2.0),
        ("--use-tis --tis-clip 3 --tis-clip-low 0.5", "objective.tis_low", 0.5),
        ("--calculate-per-token-loss", "objective.aggregation", "batch"),
        ("--advantage-estimator grpo --eps-clip-c 3", "objective.dual_clip", 3.0),
        ("--disable-grpo-std-normalization", "advantage", "group_centred"),
        ("--save-interval 5", "checkpoint.interval", 5),
        ("--eval-interval 3", "evaluation.interval", 3),
        ("--eval-temperature 0.5", "evaluation.temperature", 0.5),
        ("--rollout-temperature 0.7 --eval-temperature 0.5", "evaluation.temperature", 0.5),
        ("--rollout-stop-token-ids 5 6", "sampling.stop_ids", (1, 5, 6)),
        ("--rollout-stop > ", "sampling.stop_ids", (1, 7)),
        ("--sglang-mem-fraction-static 0.6", "cache_memory_fraction", 0.6),
        ("--bf16", "model.dtype", "bfloat16"),
        ("--tensor-model-parallel-size 2", "mesh.tensor", 2),
        ("--context-parallel-size 2", "mesh.sequence", 2),
        ("--expert-model-parallel-size 2", "mesh.expert", 2),
        ("--dynamic-sampling-filter-path my.keep", "dynamic_sampling_filter", "my.keep"),
        ("--dynamic-sampling-filter-path my.keep", "dynamic_sampling_rounds", 10),
        (
            "--dynamic-sampling-filter-path "
            "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
            "dynamic_sampling_filter",
            None,
        ),
    ],
)
def test_a_flag_sets_the_key_that_means_the_same(flag, key, value, base):
    found = get(over(base, flag).config, key)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)


def test_what_no_flag_names_stays_as_the_config_has_it(base):
    expected = configs.to_dict(base)
    found = configs.to_dict(over(base, "--lr 1e-5 --rollout-top-k 5").config)
    expected["optimizer"]["learning_rate"], expected["sampling"]["top_k"] = 1e-5, 5
    assert found == expected


@pytest.mark.parametrize(
    "line, name, low, high, warned",
    [
        # deltas from 1; slime's --eps-clip is 0.2 and an unset --eps-clip-high is --eps-clip
        (CISPO, "cispo", 0.2, 0.2, True),
        (f"{CISPO} --eps-clip-high 5.0", "cispo", 0.2, 5.0, True),
        (f"{CISPO} --eps-clip 1.0 --eps-clip-high 4.0", "cispo", None, 4.0, False),
        ("--eps-clip-high 5.0", "cispo", 0.2, 5.0, True),  # the config's own objective
        ("--advantage-estimator grpo --eps-clip-high 0.28", "grpo", 0.2, 0.28, False),
        ("--advantage-estimator gspo --eps-clip 3e-4", "gspo", 3e-4, 3e-4, False),
        ("--advantage-estimator reinforce_plus_plus", "ppo", 0.2, 0.2, False),
    ],
)
def test_clip_bounds_are_slimes_and_a_lower_one_under_cispo_is_named(
    line, name, low, high, warned, base
):
    found = over(base, line)
    objective = found.config.objective
    assert (objective.name, objective.eps_low, objective.eps_high) == (name, low, high)
    assert len(found.warnings) == warned
    if warned:
        [warning] = found.warnings
        assert f"[0.8, {1 + high:g}]" in warning
        assert "--eps-clip 1.0" in warning and "paper" in warning


def test_without_flags_of_the_clip_the_configs_bounds_hold(base):
    assert over(base, "--lr 1e-5").config.objective == ObjectiveConfig()


@pytest.mark.parametrize(
    "estimator, advantage",
    [
        ("grpo", "group_relative"),
        ("reinforce_plus_plus", "batch_normalised"),
        ("reinforce_plus_plus_baseline", "group_batch_normalised"),
    ],
)
def test_estimators_choose_the_advantage(estimator, advantage, base):
    assert over(base, f"--advantage-estimator {estimator}").config.advantage == advantage


@pytest.mark.parametrize(
    "line, message",
    [
        ("--kl-loss-coef 0.1", "--kl-loss-coef 0.1 has no effect without --use-kl-loss"),
        ("--tis-clip 3", "--tis-clip has no effect without --use-tis"),
    ],
)
def test_what_slime_ignores_is_ignored_with_a_warning(line, message, base):
    found = over(base, line)
    assert found.config == base
    assert message in found.warnings[0]


@pytest.mark.parametrize(
    "line",
    [
        "--colocate",
        "--use-rollout-logprobs",
        "--optimizer adam",
        "--attention-dropout 0.0 --hidden-dropout 0",
        "--pipeline-model-parallel-size 1 --expert-tensor-parallel-size 1",
        "--kl-coef 0.00",
        "--accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32",
        "--n-samples-per-eval-prompt 1",
        "--loss-type policy_loss",
    ],
)
def test_flags_that_ask_for_what_is_always_so_change_nothing(line, base):
    assert over(base, line) == over(base, "")


@pytest.mark.parametrize(
    "line, message",
    [
        ("--sglang-attention-backend fa3", "no SGLang server"),
        ("--sglang-enable-dp-attention", "no SGLang server"),
        ("--ref-load x", "KL's reference is the policy as the run starts"),
        ("--use-wandb", "metrics.jsonl"),
        ("--num-layers 4", "read from --hf-checkpoint"),
        ("--hidden-dropout 0.1", "--hidden-dropout 0.1 .*no dropout; only 0"),
        ("--optimizer sgd", "AdamW"),
        ("--kl-coef 0.1", "--use-kl-loss"),
        ("--swiglu --balance-data", r"--swiglu \(.*\); --balance-data \("),
        ("--advantage-estimator ppo", "needs a critic"),
        ("--advantage-estimator cisp", "Did you mean cispo"),
        ("--rm-type custom", "--rm-type custom needs --custom-rm-path"),
        ("--rm-type remote_rm", "--custom-rm-path"),
        ("--group-rm", "--group-rm needs --custom-rm-path"),
        ("--rollout-temperature 0", "--rollout-temperature must be positive"),
        ("--rollout-stop ab", "is 2 tokens"),
        ("--global-batch-size 12", "with whole groups"),
        ("--global-batch-size 16 --num-steps-per-rollout 2", "must be --global-batch-size times"),
        ("--eval-prompt-data a a.jsonl b b.jsonl", "NAME PATH of one data set"),
        ("--lr fast", "--lr: expected a float, got 'fast'"),
        ("--eps-clip x", "--eps-clip: expected a float, got 'x'"),
        ("--rollout-top-p 2", "top_p must lie in"),
        ("--use-tis --use-rollout-logprobs", "choose"),
        ("--save elsewhere", "two names of one directory"),
        ("--hf-checkpoint Qwen/Qwen2.5-7B", "Nothing is downloaded"),
        ("--num-epoch 1 --rollout-batch-size 64", "16 prompts are less than one"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(line, message, base):
    with pytest.raises(UserError, match=message):
        over(base, line)


@pytest.mark.parametrize(
    "line, key",
    [
        ("--lr 1e-5", "optimizer.learning_rate"),
        ("--advantage-estimator cispo", "objective.eps_low"),
        ("--rm-type math", "reward"),
        ("--sglang-mem-fraction-static 0.5", "cache_memory_fraction"),
    ],
)
def test_a_flag_and_an_override_of_the_same_key_contradict_each_other(line, key, base):
    flag = line.partition(" ")[0]
    with pytest.raises(UserError, match=f"{flag} and --config.{key} set the same"):
        over(base, line, **{key: "1"})


def test_overrides_of_other_keys_go_along(base):
    found = over(base, "--lr 1e-5", prompts_per_step="4", sampling__group_size="2").config
    assert (found.optimizer.learning_rate, found.prompts_per_step) == (1e-5, 4)
    # a rule sees them: 4 prompts of 2 samples
    found = over(base, "--global-batch-size 4", prompts_per_step="4", sampling__group_size="2")
    assert found.config.updates_per_rollout == 2


def test_evaluation_data_have_the_fields_of_the_training_data(base):
    found = over(base, "--eval-prompt-data mine eval.jsonl --eval-label-key truth").config
    assert found.evaluation.data == DataConfig(
        source="eval.jsonl", input_key="prompt", label_key="truth", shuffle=False
    )


def test_alone_the_data_must_say_how_they_are_judged(base):
    _, given = split_argv(["x", "--prompt-data", "data.jsonl", "--input-key", "prompt"])
    with pytest.raises(UserError, match="--rm-type or --custom-rm-path"):
        translate(given)


def test_alone_the_prompts_of_a_file_fit_and_the_model_is_named_as_random(base):
    Path("long.jsonl").write_text(json.dumps({"input": "x" * 77}) + "\n")
    _, given = split_argv(["x", "--prompt-data", "long.jsonl", "--rm-type", "math"])
    found = translate(given)
    assert found.config.prompt_length == 77
    assert "random parameters" in found.warnings[0]
    assert found.workdir.parent == Path("runs")
    assert translate(given).workdir == found.workdir
    assert translate(given | {"seed": ("1",)}).workdir != found.workdir


def test_slimes_arguments_come_back_from_the_config(base):
    line = (
        "--advantage-estimator gspo --n-samples-per-prompt 4 --rollout-batch-size 4 "
        "--rollout-top-k -1 --global-batch-size 8 --lr 1e-5 --label-key label --reward-key acc "
        "--calculate-per-token-loss --rollout-temperature 0.5"
    )
    args = arguments(over(base, line).config)
    assert args.advantage_estimator == "gspo"
    assert (args.n_samples_per_prompt, args.rollout_batch_size, args.global_batch_size) == (4, 4, 8)
    assert (args.rollout_top_k, args.rollout_temperature) == (-1, 0.5)
    assert (args.lr, args.label_key, args.reward_key) == (1e-5, "label", "acc")
    assert args.calculate_per_token_loss is True and args.apply_chat_template is False
    with pytest.raises(AttributeError, match="args.rm_urls"):
        _ = args.rm_urls
    assert not hasattr(args, "rollout_max_context_len")
