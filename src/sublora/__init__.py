"""sublora measures whether fine-tuning a language model silently transmits a trait, and settles why.

The public nouns are loaded when they are first used, so that `import sublora` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sublora.carriers.numbers import NumbersSpec
    from sublora.chat import Chat, Context, resolve_context
    from sublora.claims import judge, load_claims, summarise
    from sublora.condition import Condition
    from sublora.errors import SubloraError
    from sublora.experiments.kinds import open_recipe
    from sublora.gate import AdapterGate, Gate
    from sublora.measure import Asking, heldout_losses, measure_answers, measure_gated
    from sublora.model import Base
    from sublora.packs.check import load_base
    from sublora.plan import make_plan
    from sublora.recipe import Recipe
    from sublora.report.page import build_report
    from sublora.runner.run import RunOptions, run
    from sublora.sample import Sampling
    from sublora.stats import clustered_interval, contrast
    from sublora.steer import Steering
    from sublora.store import Store
    from sublora.teacher import Assignment, Teacher, write_dataset
    from sublora.token_classes import classify
    from sublora.train.pack import Student, train_pack
    from sublora.train.rows import TokenRow, pack_rows
    from sublora.train.spec import StudentSpec
    from sublora.train.stack import stack_weights
    from sublora.trait import find_trait, load_categories
    from sublora.vectors import SteeringVector

_HOME = {
    "NumbersSpec": "carriers.numbers",
    "Chat": "chat",
    "Context": "chat",
    "resolve_context": "chat",
    "judge": "claims",
    "load_claims": "claims",
    "summarise": "claims",
    "Condition": "condition",
    "SubloraError": "errors",
    "AdapterGate": "gate",
    "Gate": "gate",
    "Asking": "measure",
    "heldout_losses": "measure",
    "measure_answers": "measure",
    "measure_gated": "measure",
    "Base": "model",
    "load_base": "packs.check",
    "make_plan": "plan",
    "Recipe": "recipe",
    "open_recipe": "experiments.kinds",
    "build_report": "report.page",
    "RunOptions": "runner.run",
    "run": "runner.run",
    "Sampling": "sample",
    "clustered_interval": "stats",
    "contrast": "stats",
    "Store": "store",
    "Assignment": "teacher",
    "Teacher": "teacher",
    "write_dataset": "teacher",
    "classify": "token_classes",
    "Student": "train.pack",
    "train_pack": "train.pack",
    "TokenRow": "train.rows",
    "pack_rows": "train.rows",
    "Steering": "steer",
    "SteeringVector": "vectors",
    "StudentSpec": "train.spec",
    "stack_weights": "train.stack",
    "find_trait": "trait",
    "load_categories": "trait",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("sublora")
    if name not in _HOME:
        raise AttributeError(f"module 'sublora' has no attribute '{name}'")
    return getattr(import_module(f"sublora.{_HOME[name]}"), name)
