"""Whether a mathematical answer equals a label, by math-verify; a program that answers lines.

    python -P mmrl/rewards/maths_judge.py   # requests on stdin, verdicts on stdout, JSON lines

Symbolic algebra has no bound on time or memory (9^9^9^9 alone is enough), and math-verify's own
limits are signals, which only the main thread of a process may use and which cannot interrupt
C code. So `mmrl.rewards.maths` lets this program judge: it ends itself when its time is over.
"""

import faulthandler
import json
import logging
import os
import re
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

READY = "ready"
PARSE_SECONDS = 2
VERIFY_SECONDS = 3
MEMORY_BYTES = 4 * 2**30
ANSWER_CHARACTERS = 1_000  # an answer that is longer is no answer
TAIL_CHARACTERS = 4_000  # where the last number or expression of a response is looked for

_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\[,!; ]|\{,\}|~| )\d{3})+(?!\d)")
_SCIENTIFIC = re.compile(r"(\d(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\d.])")
_NUMBER_AND_UNIT = re.compile(r"(-?\s*(?:\\?[$£€])?\s*\d[\d,]*(?:\.\d+)?)\s+[A-Za-z][A-Za-z .]*")
# Three letters and more, so that xy remains a product; or the letter of a choice.
_WORDS = re.compile(r"(?:[^\W\d_]{3,}|No|no)(?:[\s'-]+[^\W\d_]+)*|[A-Z]")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} or \fbox{…} whose braces balance, or None."""
    for match in reversed(list(re.finditer(r"\\f?boxed?\s*\{", text))):
        depth = 1
        for end in range(match.end(), min(len(text), match.end() + ANSWER_CHARACTERS + 1)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if depth == 0:
                return text[match.end() : end]
    return None


def normalised(expression: str) -> str:
    """Spellings that math-verify reads as products: 1 000, 1e3, 12,500 dollars."""
    expression = expression.strip().removesuffix(".")
    expression = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), expression)
    expression = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", expression)
    unit = _NUMBER_AND_UNIT.fullmatch(expression)
    return unit[1] if unit else expression


def words(expression: str) -> str | None:
    """The words of an answer that is only words, in lower case; symbols would commute in them."""
    plain = _TEXT.sub(r"\1", expression).strip(" .$()")
    return " ".join(plain.casefold().split()) if _WORDS.fullmatch(plain) else None


def parsed(expression: str) -> list:
    return parse(f"\\boxed{{{normalised(expression)}}}", parsing_timeout=PARSE_SECONDS)


def equal(gold_values: list, answers: list) -> bool:
    """Whether one of the answers equals the label, an inequality also as an interval."""
    return verify(
        gold_values, answers, allow_set_relation_comp=True, timeout_seconds=VERIFY_SECONDS
    )


def label_expression(label: str) -> str:
    r"""The answer of a label: after GSM8K's ####, inside \boxed{} or dollars, or all of it."""
    label = label.rpartition("####")[2].strip()
    boxed = last_boxed(label)
    if boxed is not None:
        return boxed
    dollars = re.fullmatch(r"\$+([^$]+)\$+", label)
    return dollars[1] if dollars else label


def judge(response: str, label: str) -> dict[str, float]:
    r"""Whether the response's answer equals the label: {"solved": 0 or 1, "format": 0 or 1}.

    The answer is the last \boxed{}, or else the last number or expression, after the reasoning
    (`</think>`) if there is one. `format` is 1 where it was boxed. Raises ValueError for a label
    that holds no mathematics.
    """
    gold = label_expression(label)
    gold_words, gold_values = words(gold), parsed(gold)
    if not gold_values and not gold_words:
        raise ValueError(f"the label {label[:200]!r} is not a number, an expression or a word")
    response = response.rpartition("</think>")[2]
    answer = last_boxed(response)
    if answer is not None and gold_words:
        solved = words(answer) == gold_words
    elif answer is not None:
        solved = equal(gold_values, parsed(answer))
    else:
        solved = _verify_unboxed(gold_values, gold_words, response)
    return {"solved": float(solved), "format": float(answer is not None)}


def _verify_unboxed(gold_values: list, gold_words: str | None, response: str) -> bool:
    tail = response[-TAIL_CHARACTERS:].strip()
    if gold_words:
        spoken = " ".join(tail.casefold().split()).rstrip(" .$()*")
        return re.search(rf"(?<!\w){re.escape(gold_words)}$", spoken) is not None
    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    tail = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), tail)
    answers = parse(tail, targets, parsing_timeout=PARSE_SECONDS)
    return equal(gold_values, answers)


def main() -> None:
    """Answers requests until stdin ends. A request that runs out of time ends the program."""
    logging.disable()
    _limit_memory()
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no verdict
    nowhere = open(os.devnull, "w")  # noqa: SIM115
    print(READY, file=verdicts, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["seconds"], exit=True, file=nowhere)
        try:
            verdict: dict = judge(request["response"], request["label"])
        except Exception as error:  # noqa: BLE001
            verdict = {"error": f"{error}"}
        finally:
            faulthandler.cancel_dump_traceback_later()
        print(json.dumps(verdict), file=verdicts, flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    main()
