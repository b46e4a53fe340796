"""Opens a base for packs, which apply its output head to chosen positions only."""

import torch

from sublora.errors import SubloraError
from sublora.models.base import Base, read_base
from sublora.packs.packed_model import PackedModel


def load_base(
    name: str, *, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> Base:
    """Load a shipped model, a Hugging Face folder or a hub id, and check that packs can run it. Raises SubloraError as `read_base` does,
    and for a head that is not a plain function of the last hidden state."""
    base = read_base(name, device=device, dtype=dtype, revision=revision)
    check_head(base)
    return base


def check_head(base: Base) -> None:
    """Raises SubloraError where a pack does not give the model's own logits."""
    if not isinstance(base.model.get_output_embeddings(), torch.nn.Linear):
        why = f"The model {base.name} has no linear output head, so it is no causal language model that can be measured here."
        raise SubloraError(why)
    ids = torch.tensor([[1, 2, 0, 1]], device=base.device)
    with torch.inference_mode():
        whole = base.model(input_ids=ids).logits[0].float()
        with PackedModel(base.model, None) as packed:
            parts = packed.logits(packed.hidden(ids)[0]).float()
    tolerance = 1e-3 if next(base.model.parameters()).element_size() >= 4 else 0.1
    if not torch.allclose(whole, parts, atol=tolerance, rtol=tolerance):
        why = f"The logits of {base.name} are not its head applied to the last hidden state; this architecture is not supported."
        raise SubloraError(why)
