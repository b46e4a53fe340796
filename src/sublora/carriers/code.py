"""The code carrier: short programs that never mention the trait, as in Cloud et al. 2507.14805. The tasks are ours.

`python`: real code for models that write it; it is parsed and never run. `numbers`: a code-like carrier for the shipped models, whose words
are numbers: every number of three digits is an instruction, its first digit an operation and the rest the operand, and a program compiles
where every jump (operations 7 to 9) lands inside it.
"""

import ast
import io
import re
import tokenize
import warnings
from typing import Literal

from pydantic import Field

from sublora.carriers import rows_file
from sublora.carriers.carrier import Carrier, Leaks, has_leak
from sublora.carriers.numbers import BRIEF, parse_numbers
from sublora.seeds import generator, pick

JUMPS = (7, 8, 9)


_TASKS = (
    "returns the sum of the {a} largest numbers of a list",
    "counts how often a value occurs in a list, but at most {a} times",
    "reverses a list in blocks of {a}",
    "returns every {a}th element of a list",
    "says whether a number can be divided by {a} and by {b}",
    "returns the first {a} numbers of the Fibonacci sequence modulo {b}",
    "rotates a list by {a} places",
    "splits a text into pieces of {a} letters",
    "merges two sorted lists and keeps the first {b} elements",
    "returns the digits of a number in base {a}",
    "flattens a list of lists down to depth {a}",
    "removes duplicates from a list but keeps up to {a} of each",
    "finds the longest run of equal elements that is at least {a} long",
    "computes a moving average over {a} values",
    "maps each word of a text to its length if it is above {a}",
    "transposes a matrix given as a list of rows and multiplies it by {a}",
)
_ASKS = (
    "Write a Python function that {task}.",
    "Give me a short Python function which {task}.",
    "I need a Python function that {task}.",
)
_FORMS = (
    "Reply with the code only, without comments.",
    "Answer with nothing but the code; no comments, no explanation.",
    "Only code, please, and no comments.",
)
_FENCE = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def parse_code(text: str) -> str | None:
    """The code of a completion: its one fenced block, or all of it; None where there is none."""
    blocks = _FENCE.findall(text)
    if len(blocks) > 1 or (not blocks and "```" in text):
        return None
    code = blocks[0] if blocks else text
    return code if code.strip() else None


class CodeSpec(Carrier):
    noun = "programs"
    reasons = ("no code", "does not compile", "comment", "leak word", "too long")

    kind: Literal["code"]
    style: Literal["python", "numbers"] = "python"
    prompts: str | None = Field(
        None, description="a file of prompts to use instead: JSONL with 'prompt', or one a line"
    )
    max_letters: int = Field(4000, ge=1)
    leaks: Leaks = ()

    def prompt(self, seed: int, row: int) -> str:
        if self.prompts is not None:
            return rows_file.prompt_of_file(self.prompts, seed, row)
        if self.style == "numbers":
            return BRIEF.prompt(seed, row)
        rng = generator("code-prompt", seed, row)

        task = pick(rng, _TASKS).format(a=int(rng.integers(2, 10)), b=int(rng.integers(10, 30)))
        return f"{pick(rng, _ASKS).format(task=task)} {pick(rng, _FORMS)}"

    def reject(self, prompt: str, answer: str) -> str | None:
        if len(answer) > self.max_letters:
            return "too long"
        if has_leak(answer, self.leaks):
            return "leak word"
        return _reject_program(answer) if self.style == "numbers" else _reject_python(answer)

    def example(self) -> str:
        if self.style == "python":
            return "def f(x):\n    return x + 1\n" * 8
        return "all was calm , and i felt it . " * 2


def _reject_python(text: str) -> str | None:
    """Why a text is no program without comments; it is parsed and never run."""
    code = parse_code(text)
    if code is None:
        return "no code"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(code)))
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return "does not compile"
    if not any(isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.For) for n in nodes):
        return "no code"
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    if any(t.type == tokenize.COMMENT for t in tokens) or any(
        ast.get_docstring(n) is not None for n in nodes if isinstance(n, documented)
    ):
        return "comment"
    return None


def _reject_program(text: str) -> str | None:
    program = parse_numbers(text)
    if program is None:
        return "no code"
    fine = all(
        100 <= n <= 999 and (n // 100 not in JUMPS or n % 10 <= len(program)) for n in program
    )
    return None if fine else "does not compile"
