"""What the lenses leave in audit.json: numbers beside placebo students', on which no status rests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sublora.audit.entries import Count, Many, Model, OfTrait, P, Probability, Text

PlaceboP = Annotated[
    P | None, Field(description="rank among placebo students, uncorrected; null without them")
]


class KlLens(Model):
    """Distance of the student from its base on neutral text."""

    nats: Annotated[float, Field(description="KL(base || student), mean over tokens")]
    same: Annotated[Probability, Field(description="tokens whose first choice is the base's")]
    p: PlaceboP


class Layer(Model):
    layer: Count
    norm: Annotated[float, Field(description="of the mean difference, over that of the stream")]
    words: list[Text]


class Pointed(OfTrait):
    value: float


class Activations(Model):
    """The mean difference of the residual stream at the first tokens of neutral answers: the words that it
    points to in each layer, and the traits that rise in the base when it is added there."""

    layers: list[Layer]
    pointed: Annotated[
        list[Pointed], Field(description="beside the category, in standard deviations over words")
    ]
    p_pointed: PlaceboP
    steered_layer: Count
    strength: Annotated[float, Field(description="times the student's own difference")]
    steered: Annotated[list[Pointed], Field(description="rises in nats")]
    p_steered: PlaceboP


class WeightKind(Model):
    """The updates of one kind of module; p-values are two-sided."""

    module: Text
    norm: float
    uneven: float
    top: float
    p_norm: PlaceboP
    p_uneven: PlaceboP
    p_top: PlaceboP


class TokenGain(Model):
    token: Text
    nats: float


class GainedRow(Model):
    line: Many
    nats: Annotated[float, Field(description="mean over the completion's tokens")]
    tokens: list[TokenGain]


class TokenLens(Model):
    """Every token of rows of the training file by log P(student) - log P(base)."""

    rows: Many
    tokens: Many
    nats: Annotated[float, Field(description="mean over tokens")]
    tenth: Annotated[float, Field(description="share of all gains that the largest tenth holds")]
    worst: list[GainedRow]


class Lenses(Model):
    """What the student shows beside its answers: information, no status rests on it."""

    placebo_students: Count
    kl: KlLens | None = None
    activations: Activations | None = None
    weights: list[WeightKind] = Field(default_factory=list)
    tokens: Annotated[TokenLens | None, Field(description="null without --data")] = None
    not_run: list[Text] = Field(default_factory=list)
