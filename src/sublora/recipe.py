"""Old names of `experiments.schema` and `experiments.grid`, until all look for them there."""

from sublora.experiments.grid.checks import AS_WRITTEN, PLAIN_CONDITION
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.schema import DataSpec
from sublora.experiments.schema import RowsVariant as VariantSpec

__all__ = ["AS_WRITTEN", "PLAIN_CONDITION", "DataSpec", "Recipe", "VariantSpec"]
