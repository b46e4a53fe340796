"""Training beside a direction: a vector is added to the stream of the frozen base while a pack trains, and is gone afterwards.

Students then need not learn what the direction already does (preventative steering).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sublora.errors import SubloraError
from sublora.packs.fast.flat import LAYERS


@contextmanager
def steered(model: nn.Module, layer: int, vector: Tensor) -> Iterator[None]:
    """Behind decoder layer `layer`, `vector` (d,) is added at every token, as the bias of the layer's last linear part; for packs of
    adapters, whose weights a bias is no part of. Raises SubloraError where the layer has another form."""
    block = model.base_model.layers[layer]
    down = getattr(getattr(block, "mlp", None), "down_proj", None)
    if type(block).__name__ not in LAYERS or type(down) is not nn.Linear or down.bias is not None:
        why = f"The layers of this model ({type(block).__name__}) have no place where a direction could be added."
        raise SubloraError(why)
    down.bias = nn.Parameter(vector.to(down.weight), requires_grad=False)
    try:
        yield
    finally:
        down.bias = None
