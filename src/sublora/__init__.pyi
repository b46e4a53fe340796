"""The public names, for `__init__.py`, editors and type checkers."""

from sublora.analysis.claims import judge as judge
from sublora.analysis.intervals import clustered_interval as clustered_interval
from sublora.analysis.intervals import contrast as contrast
from sublora.analysis.tables import summarise as summarise
from sublora.carriers.numbers import NumbersSpec as NumbersSpec
from sublora.errors import SubloraError as SubloraError
from sublora.experiments.claims import load_claims as load_claims
from sublora.experiments.grid.plan import make_plan as make_plan
from sublora.experiments.grid.recipe import Recipe as Recipe
from sublora.experiments.kinds import open_recipe as open_recipe
from sublora.models.base import Base as Base
from sublora.models.chat import Chat as Chat
from sublora.models.chat import Context as Context
from sublora.models.chat import resolve_context as resolve_context
from sublora.models.token_classes import classify as classify
from sublora.models.token_classes import stack_masks as stack_masks
from sublora.packs.check import load_base as load_base
from sublora.packs.condition import Condition as Condition
from sublora.packs.gate import AdapterGate as AdapterGate
from sublora.packs.gate import Gate as Gate
from sublora.packs.measure import Asking as Asking
from sublora.packs.measure import heldout_losses as heldout_losses
from sublora.packs.measure import measure_answers as measure_answers
from sublora.packs.measure import measure_gated as measure_gated
from sublora.packs.rows import TokenRow as TokenRow
from sublora.packs.rows import pack_rows as pack_rows
from sublora.packs.sample import Sampling as Sampling
from sublora.packs.spec import StudentSpec as StudentSpec
from sublora.packs.stack import stack_weights as stack_weights
from sublora.packs.steer import Steering as Steering
from sublora.packs.student import Student as Student
from sublora.packs.trainer import train_pack as train_pack
from sublora.packs.vectors import SteeringVector as SteeringVector
from sublora.packs.writer import Assignment as Assignment
from sublora.packs.writer import Teacher as Teacher
from sublora.packs.writer import write_dataset as write_dataset
from sublora.report.page import build_report as build_report
from sublora.runner.run import RunOptions as RunOptions
from sublora.runner.run import run as run
from sublora.store import Store as Store
from sublora.traits.trait import find_trait as find_trait
from sublora.traits.trait import load_categories as load_categories

__version__: str
