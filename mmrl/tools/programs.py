"""The tools `python`, which runs code in the sandbox, and `submit`, which ends an episode."""

from mmrl.sandbox import Execution, Limits, run_python_async
from mmrl.tools.tool import Submission, Tool, tool

_ENDED = {
    "timeout": "it ran out of time",
    "memory": "it ran out of memory",
    "output": "it printed too much",
    "files": "it wrote too many or too large files",
    "processes": "it started too many processes",
}


def python(limits: Limits = Limits()) -> Tool:  # noqa: B008
    """The tool `python`, each call of which is a program of its own within `limits`."""

    async def python(code: str) -> str:
        """Runs a Python program and returns what it prints. Nothing is kept between calls.

        Args:
            code: the whole program; print what you want to see
        """
        return report(await run_python_async(code, limits=limits))

    return tool(python, timeout_seconds=limits.wall_seconds + 20.0)


def report(execution: Execution) -> str:
    """What a program printed, and how it ended if that was not as it should."""
    parts = [execution.stdout, execution.stderr]
    if execution.status in _ENDED:
        parts.append(f"The program was ended: {_ENDED[execution.status]}.")
    elif execution.status == "failed" and not execution.stderr.strip():
        parts.append(f"The program ended with exit code {execution.exit_code}.")
    elif not any(part.strip() for part in parts):
        parts.append("The program printed nothing.")
    return "\n".join(part.rstrip("\n") for part in parts if part.strip())


def submit() -> Tool:
    """The tool `submit`."""

    def submit(answer: str | int | float) -> Submission:
        """Hands in the final answer, which ends the conversation.

        Args:
            answer: the answer and nothing else
        """
        return Submission(answer)

    return tool(submit)
