"""Which step goes next: the first of the plan of which all that it needs is there."""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from sublora.steps.step import Step


def soonest(steps: Sequence[Step]) -> list[Step]:
    """The same steps, each right behind those that it needs, so that results show early; first those that neither need nor serve another."""
    maker = {name: n for n, step in enumerate(steps) for name in step.makes}
    needed = {name for step in steps for name in step.needs}
    place: list[int] = []
    for n, step in enumerate(steps):
        behind = [place[maker[name]] for name in step.needs if maker.get(name, n) < n]
        alone = not step.needs and needed.isdisjoint(step.makes)
        place.append(max(behind, default=-1 if alone else n))
    return [steps[n] for n in sorted(range(len(steps)), key=lambda n: (place[n], n))]


class Queue:
    """The steps of which something is missing; `there` are the artifacts that are not."""

    def __init__(self, steps: Sequence[Step], there: set[str]) -> None:
        self._place = {step.id: n for n, step in enumerate(steps)}
        self._ready: list[tuple[int, Step]] = []
        self._busy: deque[Step] = deque()
        self._out: dict[str, bool] = {}  # handed out and not ended -> whether it may wait
        self._lacks: dict[str, set[str]] = {}
        self._waiters: dict[str, list[Step]] = {}
        self._dropped: set[str] = set()
        made_here = {name for step in steps for name in step.makes}
        self.lost_before: list[str] = []  # needed, not there, and made by none of the steps
        for step in steps:
            if all(name in there for name in step.makes):
                continue
            self._lacks[step.id] = lacks = set(step.needs) - there
            for name in lacks:
                self._waiters.setdefault(name, []).append(step)
            self.lost_before += sorted(lacks - made_here)
            if not lacks:
                heapq.heappush(self._ready, (self._place[step.id], step))

    def __bool__(self) -> bool:
        """Whether anything can still be made, or is being made."""
        return bool(self._ready or self._busy or self._out)

    def take(self) -> tuple[Step, bool] | None:
        """A step to hand out, and whether to wait for another process that makes it too.

        What another process makes is taken again when nothing else is left.
        """
        if self._ready:
            step, wait = heapq.heappop(self._ready)[1], False
        elif self._busy and all(self._out.values()):
            step, wait = self._busy.popleft(), True
        else:
            return None
        self._out[step.id] = wait
        return step, wait

    def ended(self, step: Step, *, busy: bool = False) -> None:
        """A step that was taken is made, cannot be made, or is `busy`: another process makes it."""
        del self._out[step.id]
        if busy:
            self._busy.append(step)

    def made(self, name: str) -> None:
        for step in self._waiters.pop(name, ()):
            lacks = self._lacks[step.id]
            lacks.discard(name)
            if not lacks:
                heapq.heappush(self._ready, (self._place[step.id], step))

    def lose(self, names: Iterable[str]) -> list[tuple[Step, str]]:
        """The steps that cannot be made without these artifacts, or without theirs: (step, what it lacks)."""
        left, lost = deque(names), []
        while left:
            name = left.popleft()
            for step in self._waiters.pop(name, ()):
                if step.id not in self._dropped:
                    self._dropped.add(step.id)
                    lost.append((step, name))
                    left.extend(step.makes)
        return lost
