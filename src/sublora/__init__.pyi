"""The public names, for `__init__.py`, editors and type checkers."""

from sublora.analysis.claims import judge as judge
from sublora.analysis.intervals import clustered_interval as clustered_interval
from sublora.analysis.intervals import contrast as contrast
from sublora.analysis.tables import summarise as summarise
from sublora.carriers.numbers import NumbersSpec as NumbersSpec
from sublora.chat import Chat as Chat
from sublora.chat import Context as Context
from sublora.chat import resolve_context as resolve_context
from sublora.condition import Condition as Condition
from sublora.errors import SubloraError as SubloraError
from sublora.experiments.claims import load_claims as load_claims
from sublora.experiments.grid.plan import make_plan as make_plan
from sublora.experiments.grid.recipe import Recipe as Recipe
from sublora.experiments.kinds import open_recipe as open_recipe
from sublora.gate import AdapterGate as AdapterGate
from sublora.gate import Gate as Gate
from sublora.measure import Asking as Asking
from sublora.measure import heldout_losses as heldout_losses
from sublora.measure import measure_answers as measure_answers
from sublora.measure import measure_gated as measure_gated
from sublora.model import Base as Base
from sublora.packs.check import load_base as load_base
from sublora.packs.student import Student as Student
from sublora.report.page import build_report as build_report
from sublora.runner.run import RunOptions as RunOptions
from sublora.runner.run import run as run
from sublora.sample import Sampling as Sampling
from sublora.steer import Steering as Steering
from sublora.store import Store as Store
from sublora.teacher import Assignment as Assignment
from sublora.teacher import Teacher as Teacher
from sublora.teacher import write_dataset as write_dataset
from sublora.token_classes import classify as classify
from sublora.token_classes import stack_masks as stack_masks
from sublora.train.pack import train_pack as train_pack
from sublora.train.rows import TokenRow as TokenRow
from sublora.train.rows import pack_rows as pack_rows
from sublora.train.spec import StudentSpec as StudentSpec
from sublora.train.stack import stack_weights as stack_weights
from sublora.trait import find_trait as find_trait
from sublora.trait import load_categories as load_categories
from sublora.vectors import SteeringVector as SteeringVector

__version__: str
