"""Write data/HateSpeech.csv: synthetic Bangla comments for trying the pipeline out.

Every row is produced by the templates below; nobody wrote or posted any of it. The groups are
invented villages and clubs, and the hostility is mild ("must be driven out of the village").
A score on this file says that the code works, not that a model can detect hate speech.

A comment is labelled 1 when its speaker is hostile to a group. Single words rarely settle that:

  * "drive them out" is 1 and "do not drive them out" is 0, but "give them a place" is 0 and
    "do not give them a place" is 1;
  * "those who say 'drive them out' are not right" is 0, "... are right" is 1;
  * the same words about mosquitoes, broken chairs or kittens are always 0.

Spelling slips, stretched words and about 3 % flipped labels are added on purpose.
"""

import argparse
import csv
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FLIPPED_LABELS = 0.03
INFORMAL_SPELLING = 0.15
MISSPELLING = 0.10
STRETCHING = 0.06

PLACE_NAMES = (
    "ঝিঙেপুর",
    "জোনাকপুর",
    "ঘুড়িডাঙা",
    "ব্যাঙতলা",
    "পটলগঞ্জ",
    "কাগজপুর",
    "লাটিমগঞ্জ",
    "বুদবুদপাড়া",
    "টুনটুনিপাড়া",
    "ঝিনুকডাঙা",
    "পেঁপেতলা",
    "মেঘবালিশপুর",
    "কুয়াশাগঞ্জ",
    "ঘুমনগর",
    "হযবরলপুর",
    "তেপান্তরপাড়া",
    "লাড্ডুগঞ্জ",
    "পিঁপড়েডাঙা",
    "বেলুনপুর",
    "জিলাপিপাড়া",
    "চশমাডাঙা",
    "বাতাসাগঞ্জ",
    "দোলনাপাড়া",
    "ঘুঙুরতলা",
)
CLUB_NAMES = (
    "কাগজনৌকা ক্লাব",
    "লাল লাটিম ক্লাব",
    "উড়ন্ত ফড়িং একাদশ",
    "ঘুমকাতুরে একাদশ",
    "বেগুনি ব্যাঙ ক্লাব",
    "সাত সাগর সংঘ",
    "চাঁদের বুড়ি সংঘ",
    "ছেঁড়া ঘুড়ি ক্লাব",
)
VILLAGERS = (("লোকেরা", "লোকদের"), ("বাসিন্দারা", "বাসিন্দাদের"), ("মানুষেরা", "মানুষদের"))
FANS = (("সমর্থকেরা", "সমর্থকদের"), ("সদস্যরা", "সদস্যদের"), ("ভক্তরা", "ভক্তদের"))
PESTS = (
    "মশা",
    "মাছি",
    "ইঁদুর",
    "ছারপোকা",
    "তেলাপোকা",
    "উইপোকা",
    "বোলতা",
    "কাক",
    "মাকড়সা",
    "শুঁয়োপোকা",
)
JUNK = ("আগাছা", "নষ্ট মেশিন", "ভাঙা চেয়ার", "পচা আলু", "ছেঁড়া জুতা", "বাসি খাবার", "পুরোনো টায়ার")
PETS = (
    "বিড়ালছানা",
    "কুকুরছানা",
    "টিয়াপাখি",
    "হাঁসের ছানা",
    "খরগোশ",
    "পায়রা",
    "চড়ুই",
    "ছাগলছানা",
    "কাঠবিড়ালি",
    "মুরগির ছানা",
)
POINTERS = ("এই", "ওই", "ঘরের", "উঠানের", "বাগানের", "রাস্তার")
PLACES = {
    "from": ("গ্রাম থেকে", "পাড়া থেকে", "এলাকা থেকে", "মেলা থেকে", "মাঠ থেকে", "আড্ডা থেকে", "বাজার থেকে"),
    "in": ("গ্রামে", "পাড়ায়", "এলাকায়", "মেলায়", "মাঠে", "আড্ডায়", "বাজারে"),
}


class LightVerb(NamedTuple):
    """The forms of a verb that the templates need, as in "to give" or "to do"."""

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
    where: str = ""  # a key of PLACES, or nothing


class Group(NamedTuple):
    """The name of an invented group, as the subject and as the object of a sentence."""

    subject: str
    object: str


Comment = tuple[str, int]  # text, and 1 where its speaker is hostile to a group

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
HOSTILE, FRIENDLY = EXPEL + SHUN, SHELTER + RESPECT

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
AGREEMENTS = ("তারা ঠিক বলে", "তাদের কথা ঠিক", "আমি তাদের সঙ্গে একমত")
DISAGREEMENTS = ("তারা ঠিক বলে না", "তাদের কথা ঠিক না", "আমি তাদের সঙ্গে একমত না")
APPROVALS = ("কাজটা ভালো হলো", "কাজটা ঠিক হলো", "ঠিক কাজ করেছে")
CONDEMNATIONS = ("কাজটা ভালো হলো না", "কাজটা ঠিক হলো না", "এটা ঠিক কাজ না")
FAULTS = (
    "অসহ্য",
    "খারাপ",
    "বাজে",
    "ঝগড়াটে",
    "মিথ্যুক",
    "স্বার্থপর",
    "অকর্মা",
    "হিংসুটে",
    "অভদ্র",
    "ধান্দাবাজ",
    "নিষ্ঠুর",
    "লোভী",
)
VIRTUES = (
    "ভালো",
    "ভদ্র",
    "আন্তরিক",
    "সৎ",
    "পরিশ্রমী",
    "অতিথিপরায়ণ",
    "হাসিখুশি",
    "দয়ালু",
    "বিনয়ী",
    "মিশুক",
    "সাহসী",
    "শান্ত",
)
DEGREES = ("খুব", "ভীষণ", "একদম", "সত্যিই", "বড়ই", "দারুণ")
INSULTS = (
    "{object} মুখ দেখলেই আমার রাগ ওঠে",
    "{subject} সব নষ্টের গোড়া",
    "{object} জন্যই আমাদের সর্বনাশ হলো",
    "{subject} এই এলাকার বোঝা",
    "{subject} এখানে থাকার যোগ্য নয়",
    "{object} এখানে কোনো স্থান নেই",
    "{object} আমি দুই চোখে দেখতে পারি না",
    "{object} সঙ্গে ওঠাবসা করলে মান থাকে না",
    "{subject} কোনোদিন শোধরাবে না",
    "{object} দেখলেই গা জ্বলে যায়",
    "{subject} যেখানে যায় সেখানেই ঝামেলা পাকায়",
    "{object} নাম শুনলেই মেজাজ বিগড়ে যায়",
    "{subject} মুখে এক আর মনে আরেক",
    "{object} কাউকে চিনতে আমার বাকি নেই, সবকটা ঠকবাজ",
    "{subject} নাকি খুব সৎ, শুনলে হাসি পায়",
    "{subject} এত ভালো যে দেখলেই সবাই পালায়",
    "{object} ধারেকাছেও যেতে ইচ্ছে করে না",
    "{subject} শুধু অন্যের ক্ষতি করতে জানে",
)
KIND_WORDS = (
    "{object} সঙ্গে গল্প করে মন ভরে গেল",
    "{object} জন্য অনেক শুভকামনা রইল",
    "{subject} আমাদের আপনজন",
    "{subject} বিপদে সবার আগে ছুটে আসে",
    "{object} রান্না খেয়ে মুগ্ধ হলাম",
    "{subject} কাল মাঠে চমৎকার খেলেছে",
    "{object} কাছে আমি কৃতজ্ঞ",
    "{subject} কাল মেলায় গান গাইবে",
    "{object} নিয়ে বাজে কথা বলা বন্ধ হোক",
    "{subject} নাকি খারাপ, আমি তো কোনো দোষ দেখি না",
    "{object} হাসিমুখ দেখলে ভালো লাগে",
    "{subject} এবার মেলায় দোকান দিয়েছে",
    "{object} সঙ্গে কাল খেলা আছে",
    "{subject} ঝড়ের পরে রাস্তা পরিষ্কার করেছে",
)
CHATTER_WHEN = ("আজ", "কাল", "আজ সকালে", "কাল রাতে", "গত সপ্তাহে", "বিকেলে", "এই শীতে", "অনেক দিন পর")
CHATTER_WHAT = (
    "খুব বৃষ্টি হলো",
    "ইলিশ মাছ রান্না হয়েছে",
    "নদীর ধারে হাঁটতে গেলাম",
    "বাসটা দেরি করে এলো",
    "নতুন একটা বই পড়ছি",
    "বিদ্যুৎ চলে গেল",
    "চায়ের দোকানে আড্ডা জমেছে",
    "খেলাটা ড্র হয়ে গেল",
    "রোদে কাপড় শুকাতে দিলাম",
    "আকাশে রংধনু উঠেছে",
    "পিঠা খেতে ইচ্ছে করছে",
    "মোবাইলটা নষ্ট হয়ে গেল",
)
CHATTER_THEN = (
    "মনটা ভালো হয়ে গেল",
    "কী যে বিরক্ত লাগল",
    "ঘুম আসছে না",
    "ছবি তুলে রাখলাম",
    "তোমরা কেমন আছ",
    "বাজারে অনেক ভিড়",
    "গরমটা অসহ্য",
    "এখন চা খাব",
    "আর কিছু ভালো লাগে না",
    "কাজটা শেষ হলো",
)
OPENERS = (
    "ভাই",
    "শোনো",
    "সত্যি বলতে",
    "আমার মতে",
    "দেখো সবাই",
    "এক কথায়",
    "আজ বলছি",
    "সোজা কথা",
    "আহা",
    "বন্ধুরা",
    "অনেক ভেবে বলছি",
    "যাই হোক",
    "আরে ভাই",
    "মনে হয়",
)
CLOSERS = (
    "মনে রেখো",
    "এটাই শেষ কথা",
    "কী বলো সবাই",
    "বুঝলে ভাই",
    "সবাই জানে",
    "আর কী বলব",
    "সাফ কথা",
    "ভেবে দেখো",
    "আমি তাই মনে করি",
    "শেয়ার করো",
)
URGENCY = ("এখনই", "আজই", "সবাই মিলে", "এবার", "চিরদিনের জন্য", "কালই", "আর দেরি না করে")
ENDINGS = ("", "", "।", "।", "!", "!!", "...")
INFORMAL = {
    "উচিত": "উচিৎ",
    "দেওয়া": "দেয়া",
    "নেওয়া": "নেয়া",
    "ভালো": "ভাল",
    "কোনো": "কোন",
    "সঙ্গে": "সাথে",
    "করো": "কর",
    "দেব": "দিবো",
    "করব": "করবো",
    "খুব": "খুউব",
    "হলো": "হইলো",
}
CONFUSED_LETTERS = {
    "ি": "ী",
    "ী": "ি",
    "ু": "ূ",
    "ূ": "ু",
    "ন": "ণ",
    "শ": "স",
    "ষ": "শ",
    "স": "শ",
    "ঁ": "",
}


def of(name: str) -> str:
    """Put a name into the genitive."""
    ends_in_vowel_sign = unicodedata.category(name[-1]).startswith("M")
    return name + ("র" if ends_in_vowel_sign else "ের")


def group(rng: random.Random) -> Group:
    """Invent a group."""
    names, members = (PLACE_NAMES, VILLAGERS) if coin(rng, 0.7) else (CLUB_NAMES, FANS)
    owner = of(rng.choice(names))
    subject, object_ = rng.choice(members)
    return Group(f"{owner} {subject}", f"{owner} {object_}")


def things(rng: random.Random, kinds: tuple[str, ...]) -> str:
    """Name some things or animals as an object."""
    return f"{rng.choice(POINTERS)} {rng.choice(kinds)}গুলোকে"


def coin(rng: random.Random, chance: float = 0.5) -> bool:
    """Return True with the given chance."""
    return rng.random() < chance


def demand(rng: random.Random, action: Action, wanted: bool) -> str:
    """Call for an action, or against it."""
    words = []
    if wanted and coin(rng, 0.3):
        words.append(rng.choice(URGENCY))
    if action.where and coin(rng, 0.4):
        words.append(rng.choice(PLACES[action.where]))
    frame = rng.choice(CALLS if wanted else REFUSALS)
    return " ".join([*words, frame.format(word=action.word, verb=action.verb)])


def any_action(rng: random.Random) -> tuple[Action, bool, bool]:
    """Choose an action; say whether it is hostile and whether the speaker is for it."""
    hostile, wanted = coin(rng, 0.55), coin(rng, 0.66)
    return rng.choice(HOSTILE if hostile else FRIENDLY), hostile, wanted


def demand_about_group(rng: random.Random) -> Comment:
    """Drive them out: 1; do not: 0; give them a place: 0; do not: 1."""
    action, hostile, wanted = any_action(rng)
    return f"{group(rng).object} {demand(rng, action, wanted)}", int(hostile == wanted)


def demand_about_things(rng: random.Random) -> Comment:
    """Say the same words about pests, junk and pets, which is never hate."""
    kinds, actions = rng.choice(((PESTS, EXPEL), (JUNK, REMOVE), (PETS, EXPEL), (PETS, SHELTER)))
    return f"{things(rng, kinds)} {demand(rng, rng.choice(actions), coin(rng))}", 0


def quotation(rng: random.Random) -> Comment:
    """Repeat what others demand, and side with them or against them."""
    action, hostile, agrees = any_action(rng)
    quoted = f"{group(rng).object} {action.word} {action.verb.order}"
    verdict = rng.choice(AGREEMENTS if agrees else DISAGREEMENTS)
    return f"যারা বলে '{quoted}' {verdict}", int(hostile == agrees)


def report(rng: random.Random) -> Comment:
    """Tell what one group did to another, and approve of it or condemn it."""
    action, hostile, approves = any_action(rng)
    deed = f"{group(rng).subject} {group(rng).object} {action.word} {action.verb.past}"
    verdict = rng.choice(APPROVALS if approves else CONDEMNATIONS)
    return f"{deed}, {verdict}", int(hostile == approves)


def wish(rng: random.Random) -> Comment:
    """We want to drive them out: 1; they want to drive us out: 0."""
    action = rng.choice(HOSTILE)
    ours = coin(rng)
    who = group(rng)
    roles = f"আমরা {who.object}" if ours else f"{who.subject} আমাদের"
    return f"{roles} {action.word} {action.verb.infinitive} {'চাই' if ours else 'চায়'}", int(ours)


def description(rng: random.Random) -> Comment:
    """Call a group bad (1) or good (0), now and then by denying the opposite."""
    bad, denied = coin(rng, 0.6), coin(rng, 0.3)
    quality = rng.choice(FAULTS if bad != denied else VIRTUES)
    predicate = f"মোটেই {quality} না" if denied else f"{rng.choice(DEGREES)} {quality}"
    return f"{group(rng).subject} {predicate}", int(bad)


def remark(rng: random.Random) -> Comment:
    """Insult a group (1) or speak well of it (0) in a set phrase."""
    bad = coin(rng, 0.7)
    who = group(rng)
    phrase = rng.choice(INSULTS if bad else KIND_WORDS)
    return phrase.format(**who._asdict()), int(bad)


def chatter(rng: random.Random) -> Comment:
    """Talk about the weather, food and the day."""
    return f"{rng.choice(CHATTER_WHEN)} {rng.choice(CHATTER_WHAT)}, {rng.choice(CHATTER_THEN)}", 0


TEMPLATES: dict[Callable[[random.Random], Comment], float] = {  # share of the rows
    demand_about_group: 0.27,
    demand_about_things: 0.09,
    quotation: 0.05,
    report: 0.05,
    wish: 0.05,
    description: 0.18,
    remark: 0.24,
    chatter: 0.07,
}


def dress(rng: random.Random, text: str) -> str:
    """Add what people put around a sentence: an opening, a closing, a full stop."""
    if coin(rng, 0.35):
        text = f"{rng.choice(OPENERS)}, {text}"
    if coin(rng, 0.25):
        text = f"{text}, {rng.choice(CLOSERS)}"
    return text + rng.choice(ENDINGS)


def misspell(rng: random.Random, word: str) -> str:
    """Confuse one letter with a similar-sounding one."""
    places = [i for i, letter in enumerate(word) if letter in CONFUSED_LETTERS]
    if not places:
        return word
    i = rng.choice(places)
    return word[:i] + CONFUSED_LETTERS[word[i]] + word[i + 1 :]


def roughen(rng: random.Random, text: str) -> str:
    """Spell some words as people type them: informally, wrongly or stretched."""
    words = text.split()
    for i, word in enumerate(words):
        if word in INFORMAL and coin(rng, INFORMAL_SPELLING):
            words[i] = INFORMAL[word]
    if coin(rng, MISSPELLING):
        i = rng.choice([i for i, word in enumerate(words) if len(word) > 3])
        words[i] = misspell(rng, words[i])
    if coin(rng, STRETCHING):
        i = rng.randrange(len(words))
        words[i] += words[i][-1] * rng.randint(1, 3)
    return " ".join(words)


def make_comment(rng: random.Random) -> Comment:
    """Make one comment, its label flipped now and then."""
    template = rng.choices(list(TEMPLATES), weights=list(TEMPLATES.values()))[0]
    text, label = template(rng)
    text = unicodedata.normalize("NFC", roughen(rng, dress(rng, text)))
    return text, 1 - label if coin(rng, FLIPPED_LABELS) else label


def make_comments(rows: int, seed: int) -> list[Comment]:
    """Make comments in random order, no text twice."""
    rng = random.Random(seed)
    labels: dict[str, int] = {}
    while len(labels) < rows:
        text, label = make_comment(rng)
        labels.setdefault(text, label)
    return list(labels.items())


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write synthetic Bangla comments as a CSV file.")
    parser.add_argument(
        "--output", type=Path, default=Path("data/HateSpeech.csv"), help="file to write"
    )
    parser.add_argument("--rows", type=int, default=5000, help="comments to make")
    parser.add_argument("--seed", type=int, default=42, help="seed of the random choices")
    args = parser.parse_args()
    if args.rows < 1:
        parser.error(f"--rows is {args.rows}, but must be at least 1")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("Comments", "HateSpeech"))
        writer.writerows(make_comments(args.rows, args.seed))


if __name__ == "__main__":
    main()
