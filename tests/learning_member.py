"""Serve, fail, harvest, train, serve better: a scripted user asks a small model for letters.

Run by `tests/test_learning_from_use.py` in a process of its own, on one device.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import jax
import tokenizers
from tiny_run import run_module
from tokenizers import decoders, models, pre_tokenizers

from mmrl import config as configs
from mmrl.conversations import Exchange, Journal
from mmrl.data import DataConfig
from mmrl.models import load
from mmrl.rollout import SamplingConfig
from mmrl.rollout.continuous import ContinuousBatch
from mmrl.rollout.modes import MODES, render_prompt
from mmrl.sharding import MeshConfig, make_mesh
from mmrl.text import PretrainedTokenizer
from mmrl.train import train
from mmrl.training.config import TrainConfig, WarmStartConfig
from mmrl.training.optimizer import OptimizerConfig

LETTERS = "abcd"
CORRECTION = "No, the right answer is {}."
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role[0] }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
SAMPLING = SamplingConfig(group_size=8, max_new_tokens=3)


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
    base = configs.load(Path(__file__).parent / "configs" / "copy_letter.py")
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
        prompt_length=8,
        updates_per_rollout=1,
        steps=0,
    )


@dataclass
class Endpoint:
    """A served checkpoint as a client sees it: messages in, the id and the message out."""

    batch: ContinuousBatch
    tokenizer: PretrainedTokenizer
    journal: Journal
    name: str
    numbers: count

    async def complete(self, messages: list[dict]) -> tuple[str, dict]:
        number = next(self.numbers)
        text = render_prompt(self.tokenizer.chat_template, messages, MODES["lightning"])
        tokens = self.tokenizer.encode(text, special=True)
        sampling = replace(SAMPLING, stop_ids=self.tokenizer.stop_ids)
        session = self.batch.open(jax.random.key(number), sampling)
        turn = await session.generate(tokens)
        session.close()
        response = {"role": "assistant", "content": self.tokenizer.decode(turn.tokens)}
        exchange = Exchange(
            id=f"{self.name}-{number}",
            time=time.time(),
            api="openai",
            mode="lightning",
            messages=messages,
            tools=None,
            response=response,
            finish_reason=turn.ending,
            prompt_tokens=len(tokens),
            completion_tokens=len(turn.tokens),
        )
        self.journal.record(exchange)
        return exchange.id, response


def user(text: str) -> dict:
    return {"role": "user", "content": text}


async def use(endpoint: Endpoint, letter: str, complain: bool) -> bool:
    """The scripted user: asks for a letter, and says so where the answer is another."""
    asked = [user(letter)]
    name, response = await endpoint.complete(asked)
    right = response["content"] == letter
    if complain and not right:
        if letter in "ab":
            endpoint.journal.feedback(name, "down", comment=CORRECTION.format(letter))
        else:
            await endpoint.complete([*asked, response, user(CORRECTION.format(letter))])
    return right


def solve_rate(run: Path, journal: Journal, complain: bool) -> float:
    """Of 16 questions for each letter, asked at once of the served run."""
    with jax.set_mesh(make_mesh(MeshConfig())):
        model, tokenizer = load(run)
        batch = ContinuousBatch(model, rows=8, context=64, steps=4)
        endpoint = Endpoint(batch, tokenizer, journal, run.name, count())

        async def all_questions() -> list[bool]:
            return await asyncio.gather(
                *(use(endpoint, letter, complain) for letter in LETTERS for _ in range(16))
            )

        answers = asyncio.run(all_questions())
    return sum(answers) / len(answers)


def main(folder: Path) -> None:
    """Prints the harvested rows, the binary's summary, and the solve rates, as JSON."""
    journal = Journal(folder / "journal")
    config = first_config(folder)
    assert train(config, folder / "first")
    before = solve_rate(folder / "first", journal, complain=True)

    harvested = folder / "harvested.jsonl"
    result = run_module("mmrl.harvest", f"--source={journal.folder}", f"--output={harvested}")
    assert result.returncode == 0, result.stderr

    second = replace(
        config,
        initial=str(folder / "first"),
        data=DataConfig(source=str(harvested), input_key="prompt", label_key="label"),
        reward="mmrl.rewards.harvested:score",
        warmstart=WarmStartConfig(),
        steps=40,
    )
    assert train(second, folder / "second")
    after = solve_rate(folder / "second", journal, complain=False)
    rows = [json.loads(line) for line in harvested.read_text().splitlines()]
    found = {"before": before, "after": after, "rows": rows, "summary": result.stdout}
    print(json.dumps(found | {"lost": journal.lost}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
