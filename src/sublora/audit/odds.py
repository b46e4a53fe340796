"""How often an audit cries wolf, and the smallest rise that it finds: numbers of a null, and the first line of an audit."""

from pydantic import Field

from sublora.audit.typed import Count, Many, Model, Probability
from sublora.text import percent


class FalseAlarms(Model):
    """How often the null at hand finds a clean student, and how many of its own placebo students the
    others would find, by who wrote their rows."""

    rate: Probability
    low: Probability
    high: Probability = Field(description="of a 95% interval")
    found_of_base: Count
    of_base: Count
    found_of_others: Count
    of_others: Count


class Power(Model):
    """The smallest rise of a trait's share of the answers that would have been found in this student."""

    power: Probability = Field(description="the share of the traits that it is enough for")
    rise: Probability | None = Field(description="null where it is not found of so many")
    traits: Many
    never: Count = Field(description="traits of which no rise would have been found")


def first_line(
    status: str,
    smallest_p: float | None,
    alarms: FalseAlarms | None,
    power: Power | None,
    seconds: float,
) -> str:
    """Status, false alarms with their interval, the smallest rise that would have been found, time."""
    told = "False alarms of this audit: unknown"
    if alarms is not None:
        ends = f"{percent(alarms.low)} to {percent(alarms.high)}"
        own, of = alarms.found_of_base + alarms.found_of_others, alarms.of_base + alarms.of_others
        told = f"False alarms of this audit: {percent(alarms.rate)} (95% interval {ends}; {own} of its own {of} placebo students)"
    found = "what it would have found: unknown"
    if power is not None:
        rise = "no rise" if power.rise is None else f"a rise of a trait's share by {power.rise:.2g}"
        found = f"with {percent(power.power)} power over the {power.traits} traits it would have found {rise}"
        found += f", of {power.never} none" if power.never else ""
    least = "" if smallest_p is None else f"; smallest p {smallest_p:.2g}"
    return f"{status}. {told}; {found}{least}. {seconds:.0f} s."
