r"""slime's `--rm-type`s as rewards: `mmrl.rewards.slime_types:math`, `:boxed_f1` and so on.

What each gives is slime's (slime/rollout/rm_hub at 624b824); mathematics are compared by
math-verify in place of slime's own rules, which accept fewer spellings of a right answer.
`boxed_` before a name judges the text of the response's last \boxed{} alone. A sample whose
metadata have an `rm_type` is judged by that one.
"""

import collections
import dataclasses
import random as random_numbers
import re
import string
from collections.abc import Callable
from typing import Any

from mmrl.data.records import Sample
from mmrl.errors import UserError, nearest
from mmrl.rewards import maths

DAPO_CHARACTERS = 300  # of the response's end, where DAPO looks for its answer
LETTERS = string.ascii_uppercase[:10]
REFUSED = {
    "remote_rm": "write a reward that asks the server, and name it by --custom-rm-path",
    "ifbench": "its checks are a package of their own: call it in a reward for --custom-rm-path",
}


def _math(sample: Sample) -> float:
    r"""1 where the last \boxed{} equals the label."""
    verdict = maths.score(sample)
    return verdict["solved"] * verdict["format"]


def _deepscaler(sample: Sample) -> float:
    """`math` of what follows the thoughts; 0 where they do not end."""
    _, thought, answer = sample.response.rpartition("</think>")
    if not thought:
        _, thought, answer = sample.response.partition("###Response")
    return _math(dataclasses.replace(sample, response=answer)) if thought else 0.0


def _dapo(sample: Sample) -> float:
    """1 where the last "Answer: …" equals the label, and else -1 (DAPO, arXiv 2503.14476)."""
    answers = re.findall(r"(?i)answer\s*:\s*([^\n]+)", sample.response[-DAPO_CHARACTERS:])
    if not answers:
        return -1.0
    answer = answers[-1].strip().removeprefix("$").removesuffix("$")
    boxed = dataclasses.replace(sample, response=rf"\boxed{{{answer}}}")
    return 2 * maths.score(boxed)["solved"] - 1


def _f1(sample: Sample) -> float:
    """The F1 of the words of response and label, as SQuAD counts it (arXiv 1606.05250)."""
    answer, truth = _words(sample.response), _words(str(sample.label))
    closed = {("yes",), ("no",), ("noanswer",)}
    if answer != truth and {tuple(answer), tuple(truth)} & closed:
        return 0.0
    shared = sum((collections.Counter(answer) & collections.Counter(truth)).values())
    return 2 * shared / (len(answer) + len(truth)) if shared else 0.0


def _words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _gpqa(sample: Sample) -> float:
    """1 where the response's letter is the right one: the label's, or the label's among choices.

    Without a letter, 1 where the text of the right choice stands in the response.
    """
    choices = sample.metadata.get("choices") or []
    choices = [str(c) for c in (choices.values() if isinstance(choices, dict) else choices)]
    valid = sample.metadata.get("valid_letters") or LETTERS[: len(choices) or None]
    valid = [str(letter).upper() for letter in valid]
    right, label = _right_letter(sample, choices, valid), str(sample.label).strip()
    answer = sample.response.rpartition("</think>")[2]
    chosen = _chosen_letter(answer, valid)
    if chosen and right:
        return float(chosen == right)
    place = valid.index(right) if right in valid else len(choices)
    texts = [*choices[place : place + 1], label, *map(str, filter(None, _answers(sample)))]
    return float(any(_plain(t) and _plain(t) in _plain(answer) for t in texts))


def _answers(sample: Sample) -> list[Any]:
    return [sample.metadata.get(name) for name in ("correct_answer", "answer_text")]


def _right_letter(sample: Sample, choices: list[str], valid: list[str]) -> str | None:
    given, label = sample.metadata.get("correct_letter"), sample.label
    if isinstance(given, str):
        return given.strip().upper()
    if isinstance(label, int | float):
        return valid[int(label)] if 0 <= int(label) < len(valid) else None
    if str(label).strip().upper() in valid:
        return str(label).strip().upper()
    same = [i for i, choice in enumerate(choices) if _plain(choice) == _plain(str(label))]
    return valid[same[0]] if same else None


def _chosen_letter(answer: str, valid: list[str]) -> str | None:
    patterns = (
        r"(?i)(?:answer|option|choice)\s*(?:is|:)?\s*\(?([A-Z])\b",
        r"(?i)\b([A-Z])\s+is\s+(?:the\s+)?correct",
    )
    found = [match.group(1).upper() for p in patterns if (match := re.search(p, answer))]
    found += reversed(re.findall(r"\b([A-Z])\b", answer))
    return next((letter for letter in found if letter in valid), None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _random(sample: Sample) -> float:
    """0 or 1 by chance, to test a set-up."""
    return float(random_numbers.randint(0, 1))


TYPES: dict[str, Callable[[Sample], float]] = {
    "math": _math,
    "deepscaler": _deepscaler,
    "dapo": _dapo,
    "f1": _f1,
    "gpqa": _gpqa,
    "random": _random,
}


def find_type(rm_type: str) -> Callable[[Sample], float]:
    """The reward of an `--rm-type`. Raises `UserError` with the reason for what is not here."""
    name = rm_type.removeprefix("boxed_")
    if name in REFUSED:
        raise UserError(f"--rm-type {rm_type} is not in mmrl: {REFUSED[name]}")
    if name not in TYPES:
        hint = nearest(rm_type, [*TYPES, *(f"boxed_{t}" for t in TYPES), "custom"])
        raise UserError(f"--rm-type {rm_type} does not exist.{hint} The types: {', '.join(TYPES)}")
    if name == rm_type:
        return TYPES[name]
    return lambda sample: TYPES[name](dataclasses.replace(sample, response=_last_boxed(sample)))


def _last_boxed(sample: Sample) -> str:
    r"""The text within the response's last \boxed{}, nothing where there is none or no end."""
    _, found, rest = sample.response.rpartition(r"\boxed{")
    depth = 1
    for end, character in enumerate(rest if found else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:end]
    return ""


def _reward(rm_type: str) -> Callable[[Sample], float]:
    def reward(sample: Sample) -> float:
        return find_type(str(sample.metadata.get("rm_type") or rm_type).strip())(sample)

    return reward


math, deepscaler, dapo, f1, gpqa, random = map(_reward, TYPES)
boxed_math, boxed_deepscaler, boxed_dapo = map(
    _reward, ("boxed_math", "boxed_deepscaler", "boxed_dapo")
)
boxed_f1, boxed_gpqa, boxed_random = map(_reward, ("boxed_f1", "boxed_gpqa", "boxed_random"))
