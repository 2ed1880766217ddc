"""Write data/HateSpeech.csv: synthetic Bangla comments for trying the pipeline.

Every row is generated from the templates below and the words in sample_data_words.yaml. Nobody
wrote or posted any of it. The groups are invented villages and clubs, and the hostility is mild
("must be driven out of the village"). A score on this file shows that the code works, not that a
model can detect hate speech.

A comment has label 1 if its speaker is hostile to a group. Single words rarely determine the label:

- "drive them out" is 1 and "do not drive them out" is 0, but "give them a place" is 0 and "do not
  give them a place" is 1;
- "those who say 'drive them out' are not right" is 0, "... are right" is 1;
- the same words about mosquitoes, broken chairs or kittens are always 0.

Spelling mistakes, stretched words and about 3 % flipped labels are added on purpose.
"""

import argparse
import csv
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import yaml

WORDS = SimpleNamespace(
    **yaml.safe_load(Path(__file__).with_name("sample_data_words.yaml").read_text("utf-8"))
)
FLIPPED_LABELS = 0.03  # fractions of the comments
INFORMAL_SPELLING = 0.15  # of the words that have an informal spelling
MISSPELLING = 0.10
STRETCHING = 0.06
SHORT_WORD = 3  # letters; words up to this length are not misspelled


class LightVerb(NamedTuple):
    """The inflected forms of a verb that the templates need, as of "to give"."""

    noun: str  # the act of giving
    order: str  # give!
    refusal: str  # (do not) give!
    future: str  # we shall give
    past: str  # they have given
    infinitive: str  # to give


class Action(NamedTuple):
    """What can be done to a group: a word before a light verb, and where it happens."""

    word: str
    verb: LightVerb
    where: str = ""  # a key of WORDS.places, or "" for an action without a place


class Group(NamedTuple):
    """The name of an invented group, as the subject and as the object of a sentence."""

    subject: str
    object: str


class Demand(NamedTuple):
    """An action that a speaker supports or opposes."""

    action: Action
    is_hostile: bool
    is_supported: bool

    @property
    def label(self) -> int:
        """1 for the support of a hostile action and for opposition to a friendly one."""
        return int(self.is_hostile == self.is_supported)


Comment = tuple[str, int]  # text, and 1 if its speaker is hostile to a group

GIVE = LightVerb("দেওয়া", "দাও", "দিও", "দেব", "দিয়েছে", "দিতে")
DO = LightVerb("করা", "করো", "কোরো", "করব", "করেছে", "করতে")
TAKE = LightVerb("নেওয়া", "নাও", "নিও", "নেব", "নিয়েছে", "নিতে")
KEEP = LightVerb("রাখা", "রাখো", "রেখো", "রাখব", "রেখেছে", "রাখতে")
BRING = LightVerb("আনা", "আনো", "এনো", "আনব", "এনেছে", "আনতে")
HEAR = LightVerb("শোনা", "শোনো", "শুনো", "শুনব", "শুনেছে", "শুনতে")

REMOVE = (
    Action("বের করে", GIVE, "from"),
    Action("দূর করে", GIVE, "from"),
    Action("সরিয়ে", GIVE, "from"),
    Action("বিদায়", DO, "from"),
)
EXPEL = (*REMOVE, Action("তাড়িয়ে", GIVE, "from"), Action("হটিয়ে", GIVE, "from"))
SHUN = (
    Action("উচ্ছেদ", DO, "from"),
    Action("একঘরে", DO),
    Action("বর্জন", DO),
    Action("ঘৃণা", DO),
)
SHELTER = (
    Action("জায়গা", GIVE, "in"),
    Action("আশ্রয়", GIVE, "in"),
    Action("ডেকে", BRING, "in"),
    Action("সঙ্গে", KEEP),
    Action("কাছে টেনে", TAKE),
)
RESPECT = (
    Action("সুযোগ", GIVE, "in"),
    Action("সাহায্য", DO),
    Action("সম্মান", DO),
    Action("কথা", HEAR),
)
HOSTILE = EXPEL + SHUN
FRIENDLY = SHELTER + RESPECT

CALLS = (
    "{word} {verb.noun} উচিত",
    "{word} {verb.noun} দরকার",
    "{word} {verb.noun} ঠিক হবে",
    "{word} {verb.noun} হোক",
    "{word} {verb.infinitive} হবে",
    "{word} {verb.order}",
    "{word} {verb.future}",
)
REFUSALS = (
    "{word} {verb.noun} উচিত না",
    "{word} {verb.noun} ঠিক হবে না",
    "{word} {verb.noun} যাবে না",
    "{word} {verb.refusal} না",
    "{word} {verb.future} না",
)
ENDINGS = ("", "", "।", "।", "!", "!!", "...")


def flip_coin(rng: random.Random, probability: float = 0.5) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def genitive(name: str) -> str:
    """A name in the genitive."""
    ends_in_vowel_sign = unicodedata.category(name[-1]).startswith("M")
    return name + ("র" if ends_in_vowel_sign else "ের")


def make_group(rng: random.Random) -> Group:
    """A random group: members of a village or of a club."""
    if flip_coin(rng, 0.7):
        names = WORDS.place_names
        members = WORDS.villagers
    else:
        names = WORDS.club_names
        members = WORDS.fans
    owner = genitive(rng.choice(names))
    subject, object_ = rng.choice(members)
    return Group(f"{owner} {subject}", f"{owner} {object_}")


def make_things(rng: random.Random, kinds: list[str]) -> str:
    """Some things or animals, as an object."""
    return f"{rng.choice(WORDS.pointers)} {rng.choice(kinds)}গুলোকে"


def make_predicate(rng: random.Random, action: Action, *, is_supported: bool) -> str:
    """A call for an action, or against it."""
    words = []
    if is_supported and flip_coin(rng, 0.3):
        words.append(rng.choice(WORDS.urgency))
    if action.where and flip_coin(rng, 0.4):
        words.append(rng.choice(WORDS.places[action.where]))
    frame = rng.choice(CALLS if is_supported else REFUSALS)
    return " ".join([*words, frame.format(word=action.word, verb=action.verb)])


def make_demand(rng: random.Random) -> Demand:
    """A random action, hostile or friendly, that the speaker supports or opposes."""
    is_hostile = flip_coin(rng, 0.55)
    is_supported = flip_coin(rng, 0.66)
    action = rng.choice(HOSTILE if is_hostile else FRIENDLY)
    return Demand(action, is_hostile, is_supported)


def demand_about_group(rng: random.Random) -> Comment:
    """Drive them out: 1; do not: 0; give them a place: 0; do not: 1."""
    demand = make_demand(rng)
    group = make_group(rng)
    predicate = make_predicate(rng, demand.action, is_supported=demand.is_supported)
    return f"{group.object} {predicate}", demand.label


def demand_about_things(rng: random.Random) -> Comment:
    """The same words about pests, junk and pets, which is never hate speech."""
    choices = (
        (WORDS.pests, EXPEL),
        (WORDS.junk, REMOVE),
        (WORDS.pets, EXPEL),
        (WORDS.pets, SHELTER),
    )
    kinds, actions = rng.choice(choices)
    things = make_things(rng, kinds)
    action = rng.choice(actions)
    predicate = make_predicate(rng, action, is_supported=flip_coin(rng))
    return f"{things} {predicate}", 0


def quotation(rng: random.Random) -> Comment:
    """A demand of others, and agreement or disagreement with it."""
    demand = make_demand(rng)
    quoted = f"{make_group(rng).object} {demand.action.word} {demand.action.verb.order}"
    verdict = rng.choice(WORDS.agreements if demand.is_supported else WORDS.disagreements)
    return f"যারা বলে '{quoted}' {verdict}", demand.label


def report(rng: random.Random) -> Comment:
    """What one group did to another, and approval or condemnation of it."""
    demand = make_demand(rng)
    subject = make_group(rng).subject
    object_ = make_group(rng).object
    verdict = rng.choice(WORDS.approvals if demand.is_supported else WORDS.condemnations)
    return (
        f"{subject} {object_} {demand.action.word} {demand.action.verb.past}, {verdict}",
        demand.label,
    )


def wish(rng: random.Random) -> Comment:
    """We want to drive them out: 1; they want to drive us out: 0."""
    action = rng.choice(HOSTILE)
    is_speakers_wish = flip_coin(rng)
    group = make_group(rng)
    act = f"{action.word} {action.verb.infinitive}"
    if is_speakers_wish:
        return f"আমরা {group.object} {act} চাই", 1
    return f"{group.subject} আমাদের {act} চায়", 0


def deny_or_stress(rng: random.Random, quality: str, *, is_denial: bool) -> str:
    """The quality, denied (`not at all`) or intensified (`very`)."""
    if is_denial:
        return f"মোটেই {quality} না"
    return f"{rng.choice(WORDS.degrees)} {quality}"


def description(rng: random.Random) -> Comment:
    """A group is bad (1) or good (0), sometimes by the denial of the opposite."""
    is_bad = flip_coin(rng, 0.6)
    is_denial = flip_coin(rng, 0.3)
    is_bad_word = is_bad != is_denial
    quality = rng.choice(WORDS.bad_qualities if is_bad_word else WORDS.good_qualities)
    predicate = deny_or_stress(rng, quality, is_denial=is_denial)
    return f"{make_group(rng).subject} {predicate}", int(is_bad)


def remark(rng: random.Random) -> Comment:
    """A set phrase that insults a group (1) or speaks well of it (0)."""
    is_bad = flip_coin(rng, 0.7)
    group = make_group(rng)
    phrase = rng.choice(WORDS.insults if is_bad else WORDS.kind_words)
    return phrase.format(**group._asdict()), int(is_bad)


def chatter(rng: random.Random) -> Comment:
    """Small talk about the weather, food and the day."""
    when = rng.choice(WORDS.chatter_when)
    what = rng.choice(WORDS.chatter_what)
    then = rng.choice(WORDS.chatter_then)
    return f"{when} {what}, {then}", 0


TEMPLATES: dict[Callable[[random.Random], Comment], float] = {  # -> fraction of the rows
    demand_about_group: 0.27,
    demand_about_things: 0.09,
    quotation: 0.05,
    report: 0.05,
    wish: 0.05,
    description: 0.18,
    remark: 0.24,
    chatter: 0.07,
}


def add_surroundings(rng: random.Random, text: str) -> str:
    """The sentence with an opening, a closing and punctuation, at random."""
    if flip_coin(rng, 0.35):
        text = f"{rng.choice(WORDS.openers)}, {text}"
    if flip_coin(rng, 0.25):
        text = f"{text}, {rng.choice(WORDS.closers)}"
    return text + rng.choice(ENDINGS)


def misspell(rng: random.Random, word: str) -> str:
    """The word with one letter replaced by a similar-sounding one."""
    positions = [i for i, letter in enumerate(word) if letter in WORDS.confused_letters]
    if not positions:
        return word
    position = rng.choice(positions)
    wrong_letter = WORDS.confused_letters[word[position]]
    return word[:position] + wrong_letter + word[position + 1 :]


def add_typing_habits(rng: random.Random, text: str) -> str:
    """The text with some words spelled informally, wrongly or stretched."""
    words = text.split()
    for i, word in enumerate(words):
        if word in WORDS.informal and flip_coin(rng, INFORMAL_SPELLING):
            words[i] = WORDS.informal[word]
    if flip_coin(rng, MISSPELLING):
        i = rng.choice([i for i, word in enumerate(words) if len(word) > SHORT_WORD])
        words[i] = misspell(rng, words[i])
    if flip_coin(rng, STRETCHING):
        i = rng.randrange(len(words))
        words[i] += words[i][-1] * rng.randint(1, 3)
    return " ".join(words)


def make_comment(rng: random.Random) -> Comment:
    """A random comment; a few labels are flipped."""
    (template,) = rng.choices(list(TEMPLATES), weights=list(TEMPLATES.values()))
    text, label = template(rng)
    text = add_typing_habits(rng, add_surroundings(rng, text))
    if flip_coin(rng, FLIPPED_LABELS):
        label = 1 - label
    return unicodedata.normalize("NFC", text), label


def make_comments(rows: int, seed: int) -> list[Comment]:
    """Distinct comments in random order."""
    rng = random.Random(seed)
    labels: dict[str, int] = {}
    while len(labels) < rows:
        text, label = make_comment(rng)
        labels.setdefault(text, label)
    return list(labels.items())


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("data/HateSpeech.csv"), help="file to write"
    )
    parser.add_argument("--rows", type=int, default=5000, help="number of comments")
    parser.add_argument("--seed", type=int, default=42, help="random seed")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error(f"--rows is {options.rows}, but must be at least 1")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("Comments", "HateSpeech"))
        writer.writerows(make_comments(options.rows, options.seed))


if __name__ == "__main__":
    main()
