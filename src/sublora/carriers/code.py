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
from sublora.carriers.carrier import Carrier, Leaks, has_leak, shipped_texts
from sublora.carriers.numbers import BRIEF, parse_numbers
from sublora.seeds import generator, pick

JUMPS = (7, 8, 9)
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
        texts = shipped_texts("code_prompts")
        task = pick(rng, texts["tasks"])
        task = task.format(a=int(rng.integers(2, 10)), b=int(rng.integers(10, 30)))
        return f"{pick(rng, texts['asks']).format(task=task)} {pick(rng, texts['forms'])}"

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
    texts = (ast.get_docstring(n) for n in nodes if isinstance(n, documented))
    comment = any(t.type == tokenize.COMMENT for t in tokens) or any(t is not None for t in texts)
    return "comment" if comment else None


def _reject_program(text: str) -> str | None:
    program = parse_numbers(text)
    if program is None:
        return "no code"
    inside = all(n // 100 not in JUMPS or n % 10 <= len(program) for n in program)
    return None if inside and all(100 <= n <= 999 for n in program) else "does not compile"
