"""The first effects of a grid, from what is measured already while its run goes on."""

from dataclasses import replace

from sublora.analysis.effects import Effect
from sublora.experiments.grid.effects import Results, transfers
from sublora.experiments.grid.plan import Plan
from sublora.store import Store


def effects_so_far(plan: Plan, store: Store) -> list[Effect]:
    """The transfer of every group in the judged context, over those replicates that are measured with their controls and the base."""
    context = plan.recipe.judged_context
    asked = [m for m in plan.measures if store.has(m.id)]
    plain = [m for m in asked if (m.context.name, m.teacher, m.condition) == (context, None, None)]
    done, bases = ({(m.student, m.category) for m in plain if bool(m.student) == s} for s in (1, 0))
    traits = tuple(t for t in plan.traits if (None, t.category.category) in bases)
    places = {t.name: t.category.category for t in traits}

    def whole(id: str, traits: list[str]) -> bool:
        return all((id, places[t]) in done for t in traits)

    students = tuple(
        s
        for s in plan.students
        if (own := [t for t in s.twins if t in places])
        and whole(s.id, own)
        and all(whole(s.twins[t], [t]) for t in own)
    )
    known = replace(
        plan,
        traits=traits,
        students=students,
        neutral=(),
        measures=tuple(asked),
        losses=tuple(one for one in plan.losses if store.has(one.id)),
        datasets=tuple(d for d in plan.datasets if store.has(d.id)),
    )
    return transfers(Results(known, store), context) if students else []
