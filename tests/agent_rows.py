"""Rollout rows as a run of agents leaves them, with every status and every format of calls."""

import json
import random
import re

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Runs {name} and returns its output.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    }
    for name in ("search", "python", "submit")
]
STATUSES = (
    "completed", "turn_limit", "truncated", "failed", "tool_time_limit", "turn_token_limit",
    "time_limit", "aborted", "pending", "repetition",
)  # fmt: skip
PYTHON = json.dumps(
    {"code": 'total = 0\nfor n in range(7):\n    total += n ** 2\nprint("sum", total)'}
)
CALLS = {
    "chatml": f'<tool_call>\n{{"name": "python", "arguments": {PYTHON}}}\n</tool_call>',
    "m1": f'<tool_calls>\n{{"name": "python", "arguments": {PYTHON}}}\n</tool_calls>',
    "m2": '<minimax:tool_call>\n<invoke name="python">\n'
    '<parameter name="code">print(7)</parameter>\n</invoke>\n</minimax:tool_call>',
    "llama3": f'{{"name": "python", "parameters": {PYTHON}}}',
}


def words(text):
    """Pieces of `text` as a tokenizer might cut it."""
    return re.findall(r"<\|?/?\w+|\s?\w+|\s+|[^\w\s]", text)


def episode_row(pieces, group=0, **more):
    """A row of (text, drawn) pieces."""
    tokens, mask, logprobs = [], [], []
    chance = random.Random(len(pieces) + group)
    for text, drawn in pieces:
        new = words(text)
        tokens += new
        mask += [int(drawn)] * len(new)
        logprobs += [-chance.expovariate(2) if drawn else 0.0 for _ in new]
    row = {"step": 3, "group": group, "label": "91", "response_tokens": tokens}
    row |= {"logprobs": logprobs, "mask": mask, "reward": 1.0, "advantage": 0.75}
    row |= {"prompt": question(group), "status": "completed", "tools": TOOLS}
    return row | more


def question(group):
    system = "You are a careful assistant. Use the tools, then answer with a number."
    user = f"What is the sum of the squares of the integers from {group} to 6?"
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def returned(text):
    return (
        f"\n<|im_start|>user\n<tool_response>\n{text}\n</tool_response><|im_end|>"
        "\n<|im_start|>assistant\n",
        False,
    )


def four_turns(family="chatml", **more):
    """Thinks and calls, calls what cannot be read, calls again, and answers."""
    think = "<think>\nThe squares are 0, 1, 4, 9, 16, 25, 36. Let me check with code.\n</think>\n\n"
    first = "" if family == "llama3" else "I will compute it."
    bad = {"llama3": '{"name": "search", "parameters": {"query": oops}}'}.get(
        family, CALLS[family].replace('"name"', "name:").replace('name="python"', "")
    )
    return episode_row(
        [
            (f"{think}{first}\n{CALLS[family]}<|im_end|>", True),
            returned("sum 91"),
            (f"{bad}<|im_end|>", True),
            returned("error: the call is not JSON; write {\"name\": tool, \"arguments\": {…}}"),
            (f"{CALLS[family]}<|im_end|>", True),
            returned("sum 91\n" * 3),
            ("The sum of the squares is **91**.<|im_end|>", True),
        ],
        **more,
    )  # fmt: skip


def long_episode(turns=50, tokens=8192, **more):
    each = tokens // (2 * turns)
    text = " ".join(f"word{i % 97}" for i in range(each))
    return episode_row([(text, k % 2 == 0) for k in range(2 * turns)], **more)


def agent_rows():
    """A step: groups of every status, with rewards and numbers of turns that differ."""
    rows = []
    for i in range(2 * len(STATUSES)):
        status = STATUSES[i % len(STATUSES)] if i else "completed"
        reward = [1.0, 0.0, 0.25, 0.0, 0.5, -0.5][i % 6]
        more = {
            "group": i // 4,
            "status": status,
            "reward": reward,
            "advantage": reward * 1.5 - 0.5,
            "components": {"solved": float(reward == 1), "format": 0.5},
            "metrics": {"tools/ok": 2.0, "tools/unreadable": 1.0},
        }
        if status == "failed":
            more |= {"error": "TimeoutError: the judge did not answer", "in_loss": False}
        if i % 3 == 0:
            rows.append(four_turns(list(CALLS)[i // 3 % 4], **more))
        else:
            text = [(f"Answer number {i} is {i * i}.<|im_end|>", True)]
            rows.append(episode_row(text, **more))
    rows.append(long_episode(group=5, status="turn_limit", reward=0.1, advantage=-1.2))
    return rows
