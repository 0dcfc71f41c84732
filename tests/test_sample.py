"""Chats: what the model reads of earlier turns, what is streamed, and the binary itself."""

import contextlib
import dataclasses
import itertools
import signal
import time
from collections.abc import Iterable

import jax
import pytest
from absl import flags
from tiny_run import make_run, run_module, start_module

from mmrl.models import load
from mmrl.rollout import SamplingConfig, generate
from mmrl.rollout.modes import Mode
from mmrl.sample import Chat, say
from mmrl.text import CharTokenizer, ChatTemplate

END = "<end>"


@dataclasses.dataclass(frozen=True)
class ChatTokenizer(CharTokenizer):
    """Characters, `ab` as one id, and a template <u>…<end><a>…<end>."""

    alphabet: str = "abcd"
    phrases: tuple[str, ...] = ("ab", "<s>", "<u>", "<a>", END)
    source: str = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<end>{% endfor %}<a>"

    @property
    def chat_template(self):
        return ChatTemplate("test", self.source)

    @property
    def stop_ids(self):
        return (1, *self.encode(END))

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(i for i in ids if i not in self.stop_ids)


class Scripted:
    """A conversation that gives prepared responses and remembers what it was asked."""

    context = 100

    def __init__(self, *responses: list[int]):
        self.responses, self.read, self.keys, self.ending = list(responses), [], [], None

    def respond(self, tokens, sampling, key):
        self.read.append(list(tokens))
        self.keys.append(key)
        yield from self.responses[len(self.read) - 1]
        self.ending = "stop"


TOKENIZER = ChatTokenizer()
SAMPLING = SamplingConfig(group_size=1, max_new_tokens=8, stop_ids=TOKENIZER.stop_ids)
MODE = Mode(SAMPLING, context=100, thinking=False)


def ids(*pieces: str) -> list[int]:
    return [index for piece in pieces for index in TOKENIZER.encode(piece)]


def test_a_turn_keeps_the_ids_that_were_drawn_though_the_text_encodes_to_others():
    """The model drew a and b; the text ab is one id. The second turn must begin with a, b."""
    drawn = [*ids("a"), *ids("b"), *ids(END)]
    conversation = Scripted(drawn, ids("c", END))
    chat = Chat(conversation, TOKENIZER, MODE, system="d")
    assert "".join(chat.answer("c")) == "ab"
    assert "".join(chat.answer("ab")) == "c"
    first = ids("<s>", "d", END, "<u>", "c", END, "<a>")
    assert conversation.read == [first, [*first, *drawn, *ids("<u>", "ab", END, "<a>")]]
    assert [m["role"] for m in chat.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_an_answer_without_its_end_is_ended_by_the_template():
    """Stopped by the user, or at the limit of tokens."""
    conversation = Scripted(ids("a", "b", "c", END), ids("d", END))
    chat = Chat(conversation, TOKENIZER, MODE)
    with contextlib.closing(chat.answer("c")) as pieces:
        assert list(itertools.islice(pieces, 2)) == ["a", "b"]
    assert "".join(chat.answer("d")) == "d"
    begin = ids("<u>", "c", END, "<a>")
    assert conversation.read[1] == begin + [*ids("a"), *ids("b")] + ids(END, "<u>", "d", END, "<a>")


def test_a_template_that_changes_earlier_turns_is_followed():
    """As MiniMax-M2's does, which drops old thoughts: here, all but the last message's a."""
    source = (
        "{% for m in messages %}<{{ m.role[0] }}>"
        "{{ m.content if loop.last else m.content | replace('a', '') }}<end>{% endfor %}<a>"
    )
    tokenizer = ChatTokenizer(source=source)
    conversation = Scripted(ids("a", "c", END), ids("d", END))
    chat = Chat(conversation, tokenizer, MODE)
    assert "".join(chat.answer("b")) + "".join(chat.answer("d")) == "acd"
    assert conversation.read[1] == ids("<u>", "b", END, "<a>", "c", END, "<u>", "d", END, "<a>")


def test_without_a_template_the_text_goes_on():
    conversation = Scripted(ids("a", "b"), ids("c"))
    chat = Chat(conversation, TOKENIZER, MODE, raw=True)
    assert "".join(chat.answer("d<u>")) + "".join(chat.answer("d")) == "abc"
    assert conversation.read == [ids("d", "<u>"), [*ids("d", "<u>", "a"), *ids("b"), *ids("d")]]


def test_turns_have_random_numbers_of_their_own_and_reset_begins_anew():
    conversation = Scripted(*[ids("a", END)] * 3)
    chat = Chat(conversation, TOKENIZER, MODE, seed=5)
    for prompt in "cd":
        list(chat.answer(prompt))
    chat.reset()
    list(chat.answer("c"))
    first, second, third = (jax.random.key_data(key).tolist() for key in conversation.keys)
    assert first != second and first == third
    assert conversation.read[0] == conversation.read[2]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(capsys):
    class Endless(Scripted):
        def respond(self, tokens, sampling, key):
            self.read.append(tokens)
            for count in itertools.count():
                if count == 3:
                    signal.raise_signal(signal.SIGINT)
                yield ids("a")[0]

    chat = Chat(Endless(), TOKENIZER, MODE)
    handler = signal.getsignal(signal.SIGINT)
    say(chat, "c")
    captured = capsys.readouterr()
    assert captured.out == "aaaa\n" and "stopped" in captured.err
    assert chat.messages[-1] == {"role": "assistant", "content": "aaaa"}
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample"))


def greedy(run, text: str, count: int) -> str:
    """What `generate` answers to a text."""
    model, tokenizer = load(run)
    sampling = SamplingConfig(
        group_size=1, max_new_tokens=count, temperature=0.0, stop_ids=tokenizer.stop_ids
    )
    rollout = generate(model, [tokenizer.encode(text)], sampling, jax.random.key(0))
    return tokenizer.decode(rollout.tokens[0, 0, : rollout.lengths[0, 0]].tolist())


def test_the_binary_answers_a_prompt_as_generate_does(run):
    answer = greedy(run, "ab>", 20)
    result = run_module(
        "mmrl.sample",
        f"--checkpoint={run}", "--prompt=ab>", "--temperature=0", "--max_new_tokens=20",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == answer + "\n"
    assert "no chat template" in result.stderr
    assert ("limit of 20 tokens" in result.stderr) == (len(answer) == 20)


def test_the_binary_chats_until_its_input_ends(run):
    first = greedy(run, "ab>", 3)
    second = greedy(run, f"ab>{first}c>", 3)
    result = run_module(
        "mmrl.sample",
        f"--checkpoint={run}", "--temperature=0", "--max_new_tokens=3", "--raw",
        stdin="ab>\nc>\nnot in the alphabet\n/reset\nab>\n/exit\nab>\n",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [first, second, first]
    assert "error: character 'n'" in result.stderr and "no chat template" not in result.stderr


def test_ctrl_c_where_a_turn_is_awaited_does_not_end_the_chat(run):
    process = start_module("mmrl.sample", f"--checkpoint={run}", "--temperature=0", "--raw")
    try:
        assert process.stdin and process.stderr
        assert any("Ctrl-C stops" in line for line in iter(process.stderr.readline, ""))
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        output, errors = process.communicate("ab>\n/exit\n", timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in errors
    assert output.startswith(greedy(run, "ab>", 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=ab>", "--temperature=-1"], "temperature must be 0"),
        (["--prompt=ab>", "--context=2"], "has 3 tokens and the context holds 2"),
        (["ab>"], "write --prompt='ab>'"),
        (["--prompt=xyz"], "is not in the tokenizer's alphabet"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, run):
    result = run_module("mmrl.sample", f"--checkpoint={run}", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_every_flag_of_the_binary_has_its_help():
    keys = {flag.name: flag.help for flag in flags.FLAGS.get_key_flags_for_module("mmrl.sample")}
    assert keys.keys() >= {
        "checkpoint", "prompt", "mode", "temperature", "top_p", "top_k", "max_new_tokens",
        "system", "seed", "raw", "context",
    }  # fmt: skip
    assert all(keys.values())
