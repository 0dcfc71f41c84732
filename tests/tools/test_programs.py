"""The built-in tools that run programs and end episodes."""

import asyncio

import pytest

from mmrl.sandbox import Limits
from mmrl.text import ToolCall
from mmrl.tools import Submission, call, python, submit

LIMITS = Limits(wall_seconds=10, output_kb=4)


def ran(code, limits=LIMITS):
    return asyncio.run(call([python(limits)], ToolCall("python", {"code": code})))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(6 * 7)", "42"),
        ("x = 5", "The program printed nothing."),
        ("print('a')\nimport sys\nsys.exit(3)", "a\nThe program ended with exit code 3."),
        ("while True: print('x' * 1023)", "The program was ended: it printed too much."),
        ("x = bytearray(2**31)", "The program was ended: it ran out of memory."),
    ],
)
def test_the_model_sees_what_is_printed_and_how_it_ended(code, text):
    result = ran(code)
    assert result.status == "ok"
    assert result.text.endswith(text)


def test_errors_of_a_program_are_its_traceback():
    assert ran("1 / 0").text == (
        'Traceback (most recent call last):\n  File "/scratch/main.py", line 1, in <module>\n'
        "    1 / 0\n    ~~^~~\nZeroDivisionError: division by zero"
    )


def test_nothing_is_kept_between_calls():
    ran("x = 5\nopen('f', 'w').write('x')")
    assert "NameError" in ran("print(x)").text
    assert "FileNotFoundError" in ran("open('f')").text


def test_time_over_is_told_with_what_was_printed():
    code = "print('begun', flush=True)\nwhile True: pass"
    assert ran(code, Limits(wall_seconds=1)).text == (
        "begun\nThe program was ended: it ran out of time."
    )


def test_programs_that_run_at_once_do_not_meet():
    async def main():
        tools = [python(LIMITS)]
        code = "import os\nprint({n}, os.listdir())"
        return await asyncio.gather(
            *(call(tools, ToolCall("python", {"code": code.format(n=n)})) for n in range(8))
        )

    assert [one.text for one in asyncio.run(main())] == [f"{n} ['main.py']" for n in range(8)]


@pytest.mark.parametrize("answer", ["42", 42, 1.5])
def test_submit_ends_with_the_answer_as_it_was_given(answer):
    result = asyncio.run(call([submit()], ToolCall("submit", {"answer": answer})))
    assert result.submission == Submission(answer)
    assert type(result.submission.answer) is type(answer)
    assert asyncio.run(call([submit()], ToolCall("submit", {}))).submission is None
