"""Runs tests against code that is not trusted; a program that `mmrl.rewards.code` gives a sandbox.

    python code_judge.py < request

The request is JSON with mark, program, code, prefix, setup, tests and entry_point.

Two processes, so that the code never meets what judges it: this one holds the tests, and a worker
with an interpreter of its own holds the code and answers calls over a pipe. What comes back is
data of built-in types, rebuilt here: the code cannot end, patch or read the tests, nor give an
object that equals everything. A passed test is a line "MARK index", of a mark that the worker does
not know; the first line, "MARK loaded", says that the code came to its end.
"""

import base64
import builtins
import collections.abc
import contextlib
import ctypes
import io
import itertools
import json
import os
import subprocess
import sys

ITEMS = 1_000_000  # of an iterator that a function returns
PR_SET_DUMPABLE = 4


class Opaque:
    """An object that lives in the worker. It can be handed back to it and nothing else."""

    def __init__(self, number):
        self.number = number


class Wire:
    """Values of built-in types as JSON; `others` keeps all else on its side of the pipe."""

    def __init__(self, others=None):
        self.others = others

    def encode(self, value):
        if value is None or type(value) in (bool, int, float, str):
            return value
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return [kind.__name__, [self.encode(item) for item in value]]
        if isinstance(value, dict):
            return ["dict", [[self.encode(k), self.encode(v)] for k, v in value.items()]]
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        if isinstance(value, bytes | bytearray):
            return [type(value).__name__, base64.b64encode(value).decode()]
        if isinstance(value, collections.abc.Iterator):
            items = itertools.islice(value, ITEMS)
            return ["iterator", [self.encode(item) for item in items]]
        if isinstance(value, Opaque):
            return ["opaque", value.number]
        if hasattr(value, "tolist"):  # NumPy's
            return self.encode(value.tolist())
        if self.others is None:
            raise TypeError(f"a test hands over a {type(value).__name__}")
        self.others.append(value)
        return ["opaque", len(self.others) - 1]

    def decode(self, value):
        if not isinstance(value, list):
            return value
        kind, content = value
        if kind == "opaque":
            return Opaque(content) if self.others is None else self.others[content]
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind)(base64.b64decode(content))
        if kind == "complex":
            return complex(*content)
        items = [
            (self.decode(item[0]), self.decode(item[1])) if kind == "dict" else self.decode(item)
            for item in content
        ]
        makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
        return makers.get(kind, iter)(items)


class Worker:
    """The process with the code, seen from the judge."""

    def __init__(self, program):
        to_worker, self.sending = os.pipe()
        receiving, from_worker = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", program, str(to_worker), str(from_worker)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_worker, from_worker),
        )
        os.close(to_worker)
        os.close(from_worker)
        self.sending = os.fdopen(self.sending, "w", encoding="utf-8")
        self.receiving = os.fdopen(receiving, encoding="utf-8", errors="replace")
        self.wire = Wire()

    def ask(self, **request):
        """The worker's answer. Raises what the code raised, or RuntimeError if it is not one."""
        try:
            self.sending.write(json.dumps(request) + "\n")
            self.sending.flush()
            answer = json.loads(self.receiving.readline())
            if "error" in answer:
                error = getattr(builtins, str(answer["error"]), None)
                raises = isinstance(error, type) and issubclass(error, Exception)
                raise (error if raises else RuntimeError)(str(answer.get("message")))
            return answer
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise RuntimeError("the code's process has ended") from error

    def function(self, name):
        """A stand-in for the function or class `name` of the code."""

        def call(*args, **kwargs):
            encode, decode = self.wire.encode, self.wire.decode
            answer = self.ask(call=name, args=encode(args), kwargs=encode(kwargs))
            for ours, theirs in zip(args, decode(answer["args"]), strict=True):
                _copy_changes(ours, theirs)
            return decode(answer["value"])

        call.__name__ = name
        return call


def _copy_changes(ours, theirs):
    """What a call did to a list, dictionary or set that it was given."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours[:] = theirs
    elif isinstance(ours, dict | set) and type(ours) is type(theirs):
        ours.clear()
        ours.update(theirs)


def judge(request):
    """Prints the mark and the index of each test that passes."""
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    worker = Worker(request["program"])
    _hide_memory()
    names = worker.ask(code=request["code"], prefix=request["prefix"])["names"]
    print(request["mark"], "loaded", file=verdicts, flush=True)
    entry = request["entry_point"]
    for index, test in enumerate(request["tests"]):
        try:
            run_test(test, request, worker, [str(name) for name in names], entry)
        except Exception:  # noqa: BLE001, S112
            continue
        print(request["mark"], index, file=verdicts, flush=True)
    worker.process.kill()


def run_test(test, request, worker, names, entry):
    """Executes one test; it passes if it raises nothing.

    Names are looked up in the prompt's own code (`prefix`) first, then among those of the code.
    """
    space = {"__name__": "tests"}
    for trusted in (request["prefix"], request["setup"]):
        with contextlib.suppress(SyntaxError):  # the prefix may end within a function
            exec(trusted, space)
    for name in names:
        if name not in space and not hasattr(builtins, name):
            space[name] = worker.function(name)
    if entry:
        space[entry] = worker.function(entry)
    exec(test, space)
    if entry and callable(space.get("check")):
        space["check"](space[entry])


def work(incoming, outgoing):
    """The worker: executes the code, then answers calls of its functions until the judge ends."""
    requests = os.fdopen(incoming, encoding="utf-8")
    answers = os.fdopen(outgoing, "w", encoding="utf-8")
    first = json.loads(requests.readline())
    space, others = {"__name__": "solution"}, []
    wire = Wire(others)

    def answer(function):
        try:
            content = function()
        except BaseException as error:  # noqa: BLE001
            content = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer(lambda: load(first["prefix"], first["code"], space))
    for line in requests:
        answer(lambda line=line: call(json.loads(line), space, wire))


def load(prefix, code, space):
    """Executes the code as what follows the prefix, or by itself where that does not compile."""
    try:
        program = compile(prefix + "\n" + code, "solution", "exec")
    except SyntaxError:
        program = compile(code, "solution", "exec")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        exec(program, space)
    return {"names": [name for name, value in space.items() if callable(value)]}


def call(request, space, wire):
    args, kwargs = wire.decode(request["args"]), wire.decode(request["kwargs"])
    value = space[request["call"]](*args, **kwargs)
    return {"value": wire.encode(value), "args": wire.encode(args)}


def _hide_memory():
    """Denies this process's memory and files in /proc to other processes of the same user."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    if len(sys.argv) == 3:
        work(*map(int, sys.argv[1:]))
    else:
        judge(json.load(sys.stdin))
