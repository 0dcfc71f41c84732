"""Everything on at once: what a run logs, and that it resumes exactly."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import mmrl.train
from mmrl import config as configs
from mmrl.data import prompt_tokens
from mmrl.data.prompts import PromptStream
from mmrl.rollout import generate
from mmrl.rollout.sampler import pad_prompts
from mmrl.rollout.sampling import RepetitionStop
from mmrl.sharding import MeshConfig, make_mesh, split_mesh
from mmrl.train import rl_step, train
from mmrl.training.config import TrainConfig, WarmStartConfig
from mmrl.training.off_policy import OffPolicyConfig
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.run import Run
from mmrl.training.stages import LengthStages, Stage

CONFIGS = Path(__file__).parents[2] / "configs"
RL_STEPS = 7


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    """configs/recipe_small.py with a smaller model and fewer prompts; stages end at once."""
    recipe: TrainConfig = configs.load(CONFIGS / "recipe_small.py")
    model = replace(
        recipe.model,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rotary_dim=4,
        intermediate_size=16,
        num_experts=2,
        experts_per_token=1,
        layer_pattern=("lightning", "softmax"),
    )
    phase = dict(steps=2, batch_size=4)
    often = RepetitionStop(3, 1 / model.vocab_size)  # as likely as chance
    return replace(
        recipe,
        model=model,
        pretraining=replace(recipe.pretraining, **phase),
        warmstart=replace(recipe.warmstart, **phase),
        evaluation=replace(recipe.evaluation, interval=100, prompts=8),
        length_stages=LengthStages(
            (Stage(8), Stage(10, eps_high=2.0, aggregation="combined", clip_norm=0.5)),
            window=2,
            perplexity_change=1.0,
            length_share=0.5,
        ),
        mixture=tuple(replace(part, begins=1, full=3) for part in recipe.mixture),
        sampling=replace(recipe.sampling, group_size=4, repetition_stop=often),
        checkpoint=replace(recipe.checkpoint, interval=1, keep=100),
        reward="oracles.recipe_reward:score",
        prompts_per_step=8,
        updates_per_rollout=4,
        dynamic_sampling_rounds=2,
        steps=RL_STEPS,
    )


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Of the eight virtual ones, which would only divide the work of one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmrl.train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    assert train(config, workdir)
    return workdir


def rows(workdir: Path) -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))}
        for row in found
    ]


def arrays(workdir: Path, step: int) -> dict:
    """Parameters and optimizer state of a checkpoint, by path."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    return ocp.tree.to_flat_dict({name: state[name] for name in ("params", "opt_state")})


def test_every_part_of_the_recipe_reports_itself(config, run):
    assert configs.load_json(TrainConfig, run / "config.json") == config
    found = rows(run)
    phases = [row["phase"] for row in found if row["step"]]
    assert phases == ["pretraining"] * 2 + ["warmstart"] * 2 + ["rl"] * RL_STEPS
    steps = [row for row in found if row["phase"] == "rl" and row["step"]]
    expected = {
        "response/repetition", "response/perplexity", "response/length_p99",
        "stage/index", "stage/max_new_tokens",
        "curriculum/measured", "curriculum/passed_over", "mixture/weight_1",
        "rollout/staleness_mean", "rollout/staleness_max", "rollout/kept", "rollout/unfinished",
        "rollout/expired", "reward/informative", "moe/load_balance", "moe/max_load",
    }  # fmt: skip
    assert all(row.keys() >= expected for row in steps)
    assert [row["mixture/weight_1"] for row in steps[:3]] == [0.0, 0.5, 1.0]
    assert steps[0]["rollout/staleness_max"] == 0 and steps[0]["logprob/abs_diff_max"] < 1e-4
    assert all(1 <= row["rollout/staleness_max"] <= 3 for row in steps[1:])
    assert not any("logprob/abs_diff_max" in row for row in steps[1:])
    limits = {0: 8, 1: 10}
    assert all(row["stage/max_new_tokens"] == limits[row["stage/index"]] for row in steps)
    assert [row["stage/index"] for row in steps][:2] == [0, 0]
    assert steps[-1]["stage/index"] == 1
    assert any(row["response/repetition"] > 0 for row in steps)
    assert any(row["rollout/unfinished"] > 0 for row in steps)


@pytest.mark.parametrize("step", [4 + 2, 4 + 5])
def test_a_run_continues_exactly_with_all_that_it_carries(step, config, run, tmp_path):
    """From an earlier checkpoint, as a kill would leave it: rows and parameters are the same."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    assert (workdir / "checkpoints" / str(step) / "carried").exists()
    assert train(config, workdir)
    assert rows(workdir) == rows(run)
    last = 4 + RL_STEPS
    before, after = arrays(run, last), arrays(workdir, last)
    assert before.keys() == after.keys() and len(before) > 40
    for name, value in before.items():
        assert np.array_equal(np.asarray(value), np.asarray(after[name])), name


def test_a_rollout_mesh_of_its_own_draws_what_the_shared_one_does(
    config, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        mmrl.train, "split_mesh", lambda *meshes: split_mesh(*meshes[:2], jax.devices()[:2])
    )
    off_policy = replace(config.off_policy, rollout_mesh=MeshConfig(data=1))
    assert train(replace(config, off_policy=off_policy), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(run)


@pytest.mark.parametrize("split", [False, True])
def test_with_overlap_a_rollout_is_drawn_by_the_weights_of_the_step_before(split, config, tmp_path):
    """What step 1 draws for step 2 is what `generate` draws with the weights before step 1."""
    mesh, rollout_mesh = make_mesh(config.mesh, jax.devices()[:1]), None
    if split:
        mesh, rollout_mesh = split_mesh(config.mesh, MeshConfig(data=2), jax.devices()[:3])
    config = replace(
        config,
        pretraining=WarmStartConfig(),
        warmstart=WarmStartConfig(),
        mixture=(),
        off_policy=OffPolicyConfig(max_staleness=1, overlap=True),
        length_stages=LengthStages(),
        dynamic_sampling_rounds=1,
        optimizer=OptimizerConfig(learning_rate=0.05),
    )
    stream = PromptStream(config.data, prompts=config.prompts_per_step)
    stream.draw(1)
    prompts = [prompt_tokens(example, config.tokenizer) for example in stream.draw(2)]
    prompts = pad_prompts(prompts, config.prompt_length)
    sampling = replace(config.sampling, stop_ids=config.tokenizer.stop_ids)
    with jax.set_mesh(mesh):
        run = Run(config, tmp_path / "run", rollout_mesh)
        assert run.enter("rl") == 0
        before = run.snapshot()
        metrics = rl_step(run, 1)
        with jax.set_mesh(run.rollout_mesh):
            key = run.key(2, 0)
            expected, other = (
                np.asarray(generate(model, prompts, sampling, key, layout="decode").tokens)
                for model in (before, run.snapshot())
            )
        devices = [x.devices() for x in jax.tree.leaves(nnx.state(before))]
        assert all(found == set(run.rollout_mesh.devices.flat) for found in devices)
        run.writer.close()
    ahead, _ = run.carry.ahead

    def sorted_groups(tokens: np.ndarray) -> list:
        return sorted(np.asarray(tokens).tolist())

    assert metrics["rollout/staleness_max"] == 0 and (ahead.staleness == 0).all()
    assert sorted_groups(ahead.tokens) == sorted_groups(expected) != sorted_groups(other)
