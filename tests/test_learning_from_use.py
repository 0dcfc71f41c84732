"""The whole circle by HTTP and the binaries: serve, fail, harvest, train, serve better."""

import asyncio
import json
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import openai
import pytest
import tokenizers
from serving.serving_tools import running_server, user
from subprocesses import TESTS
from tiny_run import one_device, run_module
from tokenizers import decoders, models, pre_tokenizers

from mmrl import config as configs
from mmrl.conversations.links import RETRY_SECONDS
from mmrl.data import DataConfig
from mmrl.rollout import SamplingConfig
from mmrl.text import PretrainedTokenizer
from mmrl.train import train
from mmrl.training.config import TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig

LETTERS = "abcd"
CORRECTION = "No, the right answer is {}."
TRIES = 4
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role[0] }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
SAMPLING = SamplingConfig(group_size=16, max_new_tokens=3)


def write_tokenizer(directory: Path) -> PretrainedTokenizer:
    """Characters, and the tokens of a small chat template."""
    special = ["<|end|>", "<|u|>", "<|a|>"]
    vocab = [*special, *sorted(set(CORRECTION + LETTERS) - {"{", "}"})]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    fields = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return PretrainedTokenizer(str(directory))


def write_data(path: Path) -> Path:
    """Each letter with each letter as its answer: what to say, and not yet what is right."""
    rows = [{"prompt": a, "label": b} for a in LETTERS for b in LETTERS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_config(folder: Path) -> TrainConfig:
    """A warm start that teaches to answer with a letter, whichever."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    base = configs.load(TESTS / "configs" / "copy_letter.py")
    source = str(write_data(folder / "data.jsonl"))
    return replace(
        base,
        tokenizer=tokenizer,
        model=replace(base.model, vocab_size=tokenizer.vocab_size, num_experts=0),
        data=DataConfig(source=source, input_key="prompt", label_key="label", chat=True),
        evaluation=replace(base.evaluation, data=None),
        warmstart=WarmStartConfig(
            steps=60, batch_size=16, length=8, optimizer=OptimizerConfig(learning_rate=1e-2)
        ),
        checkpoint=replace(base.checkpoint, interval=100),
        sampling=SAMPLING,
        prompts_per_step=16,
        prompt_length=8,
        updates_per_rollout=1,
        steps=0,
    )


@dataclass
class User:
    """Asks the served `model` for a letter, in a session of their own.

    `answered` holds the ids of all responses.
    """

    client: openai.AsyncOpenAI
    model: str
    number: int
    letter: str
    answered: list[str] = field(default_factory=list)

    async def complete(self, messages: list[dict]) -> tuple[str, str]:
        """The id of the response and its text."""
        response = await self.client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=SAMPLING.max_new_tokens,
            seed=TRIES * self.number + len(self.answered),
            extra_headers={"x-session-id": f"user-{self.number}"},
        )
        self.answered.append(response.id)
        return response.id, response.choices[0].message.content

    async def rate(self, name: str, rating: str, **said: str) -> None:
        body = {"id": name, "rating": rating} | said
        answer = await self.client.post("/feedback", body=body, cast_to=object)
        assert answer == {"id": name, "recorded": True}

    async def use(self, complain: bool) -> bool:
        """Whether the first answer was right. Who asked for what says in which way it was not."""
        asked = user(self.letter)
        name, answer = await self.complete(asked)
        right = answer == self.letter
        if complain and not right:
            if self.letter in "ab":
                await self.rate(name, "down", comment=CORRECTION.format(self.letter))
            elif self.letter == "c":
                said = {"role": "assistant", "content": answer}
                await self.complete([*asked, said, *user(CORRECTION.format(self.letter))])
            else:
                await self.ask_again(asked)
        return right

    async def ask_again(self, asked: list[dict]) -> None:
        """The same, until an answer is right, which is then rated up."""
        while len(self.answered) < TRIES:
            await asyncio.sleep(RETRY_SECONDS)
            name, answer = await self.complete(asked)
            if answer == self.letter:
                return await self.rate(name, "up")


async def ask_all(address: str, model: str, complain: bool) -> tuple[float, list[str]]:
    """The share of right first answers to 16 questions for each letter, and all responses' ids."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        users = [User(client, model, i, letter) for i, letter in enumerate(LETTERS * 16)]
        right = await asyncio.gather(*(user.use(complain) for user in users))
    return sum(right) / len(right), [name for user in users for name in user.answered]


def serve(run: Path, *flags: str, complain: bool) -> tuple[float, list[str]]:
    """As `ask_all`, of a run that is served until its users have asked."""
    with running_server(run, "--rows=8", "--context=64", *flags) as (process, address, _):
        found = asyncio.run(ask_all(address, run.name, complain))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    return found


@pytest.mark.slow
def test_a_served_model_answers_better_after_training_on_its_harvested_failures(tmp_path):
    """Users say what was right by thumbs-down, in the next turn, or with what they rate up."""
    first, harvested = first_config(tmp_path), tmp_path / "harvested.jsonl"
    with one_device():
        assert train(first, tmp_path / "first")
    journal = tmp_path / "journal"
    before, answered = serve(tmp_path / "first", f"--log_dir={journal}", complain=True)

    result = run_module("mmrl.harvest", f"--source={journal}", f"--output={harvested}")
    assert result.returncode == 0, result.stderr
    assert f"read      {len(answered)} exchanges" in result.stdout
    assert "0 lines skipped" in result.stdout and "written   4 prompts" in result.stdout
    rows = [json.loads(line) for line in harvested.read_text().splitlines()]
    assert sorted((row["prompt"][-1]["content"], row["label"]) for row in rows) == [
        (letter, letter) for letter in LETTERS
    ]
    reasons = {row["label"]: row["metadata"]["reasons"] for row in rows}
    assert "thumbs_down" in reasons["a"] and "thumbs_down" in reasons["b"]
    assert "correction" in reasons["c"] and "retry" in reasons["d"]

    second = replace(
        first,
        initial=str(tmp_path / "first"),
        data=DataConfig(source=str(harvested), input_key="prompt", label_key="label"),
        reward="mmrl.rewards.harvested:score",
        warmstart=WarmStartConfig(),
        steps=40,
    )
    with one_device():
        assert train(second, tmp_path / "second")
    after, _ = serve(tmp_path / "second", complain=False)
    print(f"right of 64 answers: {before:.2f} before, {after:.2f} after")
    assert before < 0.5 and after > 0.8
