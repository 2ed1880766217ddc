"""New texts made of training texts, for a student to learn from the teacher on.

Jiao et al. (2020, TinyBERT) augment their training texts to distil; here words are dropped, replaced by words of other
texts, and texts spliced, without a language model. They carry no label, because it may not hold any more.
"""

from collections.abc import Iterator, Sequence
from random import Random

DROPPED, REPLACED, SPLICED = 0.1, 0.15, 0.3  # shares: of words, of the words left, of texts


def varied(texts: Sequence[str], copies: int, seed: int) -> Iterator[str]:
    """`copies` variants of each text; a blank one is left out."""
    rng, words = Random(seed), [word for text in texts for word in text.split()]
    for _ in range(copies):
        for text in texts:
            if variant := variant_of(text.split(), texts, words, rng):
                yield variant


def variant_of(own: list[str], texts: Sequence[str], words: Sequence[str], rng: Random) -> str:
    """One variant: the beginning of the text, perhaps the end of another, then word by word dropped or replaced."""
    if rng.random() < SPLICED and own:
        other = rng.choice(texts).split()
        own = own[: rng.randint(1, len(own))] + other[rng.randint(0, len(other)) :]
    kept = [word for word in own if rng.random() >= DROPPED]
    return " ".join(rng.choice(words) if rng.random() < REPLACED else word for word in kept)
