"""The choices that a user of chains has."""

from mlxengine import Feature, Stage

BACKOFF = Feature[bool](
    name="markov.backoff",
    default=True,
    summary="Where a context was never seen, use the longest end of it that was; otherwise stop there.",
)
CHOICES = Feature[bool](
    name="markov.choices",
    default=False,
    stage=Stage.EXPERIMENTAL,
    summary="Say with a Choice event how probable each word was.",
)
FEATURES = (BACKOFF, CHOICES)
