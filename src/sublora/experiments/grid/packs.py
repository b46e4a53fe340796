"""Which students train together."""

from collections.abc import Sequence

from sublora.steps.students import Student

PACK_STUDENTS = 12  # more gain nothing, a pack is what a kill can cost, and cores wait for the last
PACK_TOKENS = {"cpu": 48_000, "cuda": 65_536}  # tokens of a training step over all students


def most_students(tokens: float, device: str) -> int:
    """How many students a pack may have, each with so many tokens in a step."""
    most = PACK_TOKENS.get(device, PACK_TOKENS["cuda"])
    return max(1, min(PACK_STUDENTS, int(most / tokens)))


def plan_packs(students: Sequence[Student], most: int) -> tuple[tuple[int, ...], ...]:
    """Students (indices) that train together: same method and targets, similar ranks, evenly filled packs, no student with its teacher.

    It does not depend on what is done already, so that a resumed run repeats the very same passes.
    Where optimizers are compared, those of one replicate stand together.
    """
    trainings: dict[str, list[int]] = {}  # what is kept on the way stands with what it becomes
    for i, s in enumerate(students):
        trainings.setdefault(s.whole, []).append(i)
    kinds: dict[tuple, list[int]] = {}
    for first, *_ in trainings.values():
        spec = students[first].student
        kinds.setdefault((spec.method, spec.targets, students[first].hop), []).append(first)

    def place(i: int) -> tuple:
        s = students[i]
        replicate = (s.source, *s.replicate) if s.labels["optimizer"] else ()
        return s.student.rank or 0, replicate, i

    packs = []
    for members in kinds.values():
        members.sort(key=place)
        size, extra = divmod(len(members), count := -(-len(members) // most))
        at = 0
        for n in range(count):
            part = members[at : at + size + (n < extra)]
            packs.append(tuple(i for j in part for i in trainings[students[j].whole]))
            at += len(part)
    return tuple(packs)
