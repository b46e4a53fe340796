"""The one place that sets forward hooks: they are gone on exit, also after an exception."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@contextmanager
def change(modules: Iterable[tuple[nn.Module, Change]]) -> Iterator[None]:
    """Each module gives `function(output)`; of a tuple, the first part is changed."""

    def hook(function: Change):
        def run(_module: nn.Module, _inputs: tuple, out):
            return (function(out[0]), *out[1:]) if isinstance(out, tuple) else function(out)

        return run

    handles = [module.register_forward_hook(hook(function)) for module, function in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forwards(modules: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Each module runs the given forward instead of its own."""
    patched: list[tuple[nn.Module, Callable | None]] = []
    try:
        for module, forward in modules:
            # one may have a forward beside its class's, as accelerate's hooks do
            patched.append((module, vars(module).get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in reversed(patched):
            if own is None:
                del module.forward
            else:
                module.forward = own


@contextmanager
def before(module: nn.Module, look: Callable[[tuple, dict], None]) -> Iterator[None]:
    """`look(args, kwargs)` sees what the module is called with."""
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: look(args, kwargs), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def listen(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that every forward pass fills with the stream (rows, T, d) behind each layer."""
    heard: list[Tensor] = []

    with change([(layer, lambda stream: heard.append(stream) or stream) for layer in layers]):
        yield heard


def add(layers: Sequence[nn.Module], vectors: Tensor):
    """Behind layer l, vectors[:, l] of (B, L, d) are added to every token of each row."""
    added = [lambda x, i=i: x + vectors[:, i].unsqueeze(1) for i in range(len(layers))]
    return change(zip(layers, added, strict=True))
