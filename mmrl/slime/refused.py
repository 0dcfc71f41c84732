"""slime's flags that have no meaning in mmrl, by reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

# --flag X; --flag X Y …; --flag; any of these
Form = Literal["value", "values", "switch", "any"]


@dataclass(frozen=True)
class Refused:
    """Has no meaning here, for this reason."""

    why: str
    form: Form = "value"


def _refuse(why: str, values: str = "", switches: str = "", lists: str = "") -> dict[str, Refused]:
    """Refused flags by form, each text a list of names."""
    forms: Iterable[tuple[Form, str]] = (
        ("value", values),
        ("switch", switches),
        ("values", lists),
    )
    return {name: Refused(why, form) for form, names in forms for name in names.split()}


REFUSED: Mapping[str, Refused] = {
    **_refuse(
        "the model's shape is read from --hf-checkpoint",
        "num-layers hidden-size ffn-hidden-size num-attention-heads num-query-groups kv-channels "
        "vocab-size make-vocab-size-divisible-by normalization norm-epsilon rotary-base "
        "position-embedding-type rotary-percent rotary-scaling-factor max-position-embeddings "
        "seq-length spec "
        "num-experts moe-ffn-hidden-size moe-layer-freq moe-router-topk moe-router-score-function "
        "moe-router-dtype moe-router-load-balancing-type moe-router-bias-update-rate "
        "moe-router-topk-scaling-factor moe-router-num-groups moe-router-group-topk "
        "moe-shared-expert-intermediate-size q-lora-rank kv-lora-rank qk-head-dim v-head-dim "
        "qk-pos-emb-head-dim mscale mscale-all-dim mtp-num-layers mtp-loss-scaling-factor "
        "model-name padded-vocab-size",
        "swiglu group-query-attention disable-bias-linear add-qkv-bias qk-layernorm "
        "untie-embeddings-and-output-weights use-rotary-position-embeddings use-rope-scaling "
        "rotary-interleaved no-rope-fusion no-position-embedding multi-latent-attention "
        "moe-router-pre-softmax moe-router-enable-expert-bias moe-shared-expert-gate "
        "apply-layernorm-1p use-gated-attention attention-output-gate post-self-attn-layernorm "
        "post-mlp-layernorm enable-mtp-training freeze-indexer",
    ),
    **_refuse(
        "the model's config has it: --config.model.load_balance_coefficient", "moe-aux-loss-coeff"
    ),
    **_refuse(
        "one mesh of all devices serves training and rollouts: --config.mesh.data, fsdp, expert, "
        "sequence and tensor are its sizes",
        "actor-num-nodes actor-num-gpus-per-node rollout-num-gpus rollout-num-gpus-per-engine "
        "num-gpus-per-node decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers",
        "sequence-parallel use-distributed-optimizer allgather-cp",
    ),
    **_refuse(
        "weights stay on their devices: the sampler uses the trainer's own",
        "update-weight-mode update-weight-transport update-weight-disk-dir "
        "update-weight-delta-encoding update-weight-delta-checksum update-weight-buffer-size "
        "update-weights-interval update-weight-local-checkpoint-dir custom-model-provider-path "
        "custom-update-weight-post-write-path train-env-vars train-backend rollout-data-transport "
        "megatron-config-path custom-megatron-init-path custom-megatron-before-log-prob-hook-path "
        "custom-megatron-before-train-step-hook-path",
        "check-weight-update-equal offload offload-train no-offload-train offload-rollout "
        "no-offload-rollout release-train "
        "update-weight-disk-keep-files keep-old-actor optimizer-cpu-offload "
        "overlap-cpu-optimizer-d2h-h2d use-precision-aware-optimizer use-stateless-adam "
        "reset-optimizer-states",
    ),
    **_refuse(
        "--config.model.remat says what is computed again in the backward pass",
        "recompute-granularity recompute-method recompute-num-layers",
        "recompute-loss-function",
    ),
    **_refuse(
        "the kernels are chosen for the platform",
        "attention-backend transformer-impl qwen-gdn-backend moe-token-dispatcher-type "
        "moe-token-drop-policy fp8-format fp8-recipe distributed-backend",
        "moe-grouped-gemm moe-permute-fusion moe-enable-deepep fp8-param-gather "
        "no-masked-softmax-fusion no-gradient-accumulation-fusion fp16",
        "megatron-deepgemm-forward-layers megatron-deepgemm-forward-modules "
        "megatron-deepgemm-moe-forward-layers megatron-deepgemm-moe-forward-modules",
    ),
    **_refuse(
        "batches have fixed shapes and whole groups: --config.micro_batches cuts an update",
        "micro-batch-size max-tokens-per-gpu log-probs-max-tokens-per-gpu log-probs-chunk-size "
        "data-pad-size-multiplier",
        "use-dynamic-batch-size balance-data balance-by-flops",
    ),
    **_refuse(
        "metrics.jsonl, tensorboard/, rollouts/ and report.html in the run directory hold the log",
        "wandb-mode wandb-dir wandb-key wandb-host wandb-team wandb-group wandb-project "
        "wandb-random-suffix wandb-run-id tb-project-name tb-experiment-name tensorboard-dir "
        "save-debug-rollout-data save-debug-train-data dump-details log-reward-category "
        "custom-rollout-log-function-path custom-eval-rollout-log-function-path log-interval",
        "use-wandb disable-wandb-random-suffix wandb-always-use-train-step use-tensorboard "
        "log-multi-turn log-passrate log-correct-samples get-mismatch-metrics use-rollout-entropy",
    ),
    **_refuse(
        "responses come from the sampler, whose tokens and log-probabilities the loss is about",
        "rollout-function-path eval-function-path data-source-path "
        "rollout-data-postprocess-path rollout-sample-filter-path buffer-filter-path "
        "rollout-all-samples-process-path custom-convert-samples-to-train-data-path "
        "rollout-sample-hook-path rollout-buffer-url rollout-task-type load-debug-rollout-data "
        "load-debug-rollout-data-subsample load-forge-rollout-data fetch-trajectory-retry-times "
        "min-batch-collection-ratio rollout-health-check-interval rollout-health-check-timeout "
        "rollout-health-check-first-wait http-proxy",
        "disable-rollout-global-dataset use-fault-tolerance use-distributed-post "
        "debug-rollout-only debug-train-only",
        "rollout-external-engine-addrs",
    ),
    **_refuse(
        "responses go on over updates by --config.off_policy.partial_tokens, a number of tokens a "
        "step, and --config.off_policy.max_staleness",
        "",
        "partial-rollout mask-offpolicy-in-partial-rollout",
    ),
    **_refuse(
        "sampler and trainer are one forward function and choose the same experts",
        "",
        "use-routing-replay use-rollout-routing-replay",
    ),
    **_refuse(
        "each round of dynamic sampling draws --rollout-batch-size prompts; "
        "--config.dynamic_sampling_rounds bounds the rounds",
        "over-sampling-batch-size",
    ),
    **_refuse(
        "responses keep their special tokens, but for the stop token",
        "",
        "rollout-skip-special-tokens",
    ),
    **_refuse(
        "evaluation samples as rollouts do, at --eval-temperature",
        "eval-top-p eval-top-k eval-max-response-len eval-max-prompt-len eval-max-context-len "
        "eval-min-new-tokens eval-config eval-reward-key eval-tool-key",
        "skip-eval-before-train",
    ),
    **_refuse(
        "rewards are always centred on their group or batch: --config.advantage chooses how",
        "custom-reward-post-process-path custom-advantage-function-path",
        "disable-rewards-normalization normalize-advantages disable-compute-advantages-and-returns",
    ),
    **_refuse(
        "losses are those of mmrl.rl.objectives",
        "custom-loss-function-path custom-tis-function-path custom-pg-loss-reducer-function-path "
        "opd-type opd-kl-coef opd-teacher-load opd-teacher-ckpt-step opsm-delta",
        "use-opd use-opsm use-unbiased-kl",
    ),
    **_refuse(
        "there is no critic, and advantages belong to whole responses",
        "value-clip num-critic-only-steps gamma lambd critic-load critic-save critic-lr "
        "critic-train-only critic-num-nodes critic-num-gpus-per-node critic-lr-warmup-iters",
    ),
    **_refuse(
        "the KL's reference is the policy as the run starts", "ref-load ref-ckpt-step "
        "ref-update-interval",
    ),
    **_refuse(
        "write a reward that asks the server, and name it by --custom-rm-path", "rm-url"
    ),
    **_refuse(
        "the sampled tokens are the mask: no conversation is tokenized again", "loss-mask-type"
    ),
    **_refuse(
        "the template gets messages and tools only; a .jinja file at --config.tokenizer.template "
        "may fix its other settings",
        "apply-chat-template-kwargs",
    ),
    **_refuse(
        "only text: the decoder reads no images", "multimodal-keys"
    ),
    **_refuse(
        "parameters are trained all, or adapters alone by --config.model.lora.rank",
        lists="only-train-params-name-list freeze-params-name-list",
    ),
    **_refuse(
        "the steps of warm-up are given by --lr-warmup-iters",
        "lr-warmup-fraction lr-warmup-init lr-wsd-decay-style lr-wsd-decay-iters",
    ),
    **_refuse(
        "python -m mmrl.convert writes a Hugging Face directory of a run", "save-hf ckpt-format "
    ),
    **_refuse(
        "a run goes on where its last checkpoint is", "start-rollout-id ckpt-step"
    ),
    **_refuse(
        "a checkpoint holds the optimizer, and is written beside the next step",
        switches="async-save no-save-optim",
    ),
    **_refuse(
        "--initialization_timeout_seconds and --heartbeat_timeout_seconds are the job's",
        "distributed-timeout-minutes",
    ),
    **_refuse(
        "the reports of jax.profiler and pytest take their place",
        "memory-snapshot-dir memory-snapshot-num-steps memory-recorder ci-save-grad-norm "
        "ci-load-grad-norm ci-train-rollout-logprob-abs-diff-threshold",
        "record-memory-history ci-test ci-disable-kl-checker",
        "profile-target",
    ),
    **_refuse(
        "settings are --config.KEY=VALUE", "custom-config-path"
    ),
}  # fmt: skip
SGLANG = Refused(
    "the sampler is the trainer's own forward function: there is no SGLang server", "any"
)
