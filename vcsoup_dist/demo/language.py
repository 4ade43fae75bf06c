"""The generated language of the demo world: prompts that ask about things, answers that vary.

Every choice comes from the `random.Random` that is handed in, so a seed fixes the whole world.
Text is lower-case words and single punctuation marks with one space between them, which is
what the demo's word-level tokenizer gives back on decoding.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]
Prompt = Sequence[Message]

KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "horse", "bird", "rabbit", "goat", "bear"),
    "vehicle": ("boat", "train", "bicycle", "bus", "plane", "wagon", "sledge"),
    "object": ("lamp", "clock", "chair", "book", "mirror", "piano", "basket"),
    "food": ("apple", "bread", "soup", "cake", "cheese", "honey", "pear"),
    "place": ("garden", "bridge", "castle", "river", "harbour", "market", "forest"),
    "risky": ("knife", "axe", "bleach", "petrol", "firework", "trap"),
}
THINGS = frozenset(thing for kind in KINDS.values() for thing in kind)
RISKY = frozenset(KINDS["risky"])
HARMLESS = tuple(thing for kind, things in KINDS.items() if kind != "risky" for thing in things)
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}

# What a sentence says of a thing. No word here is the name of a thing (a test holds this).
FACTS: dict[str, tuple[str, ...]] = {
    "animal": ("sleeps a lot", "likes to run", "has soft ears", "eats early"),
    "vehicle": ("moves slowly", "carries many people", "needs new paint", "leaves at noon"),
    "object": ("is quite old", "stands upstairs", "was made by hand", "costs little"),
    "food": ("tastes sweet", "is best fresh", "keeps for days", "smells good"),
    "place": ("is very quiet", "lies northwards", "was built long ago", "has many visitors"),
    "risky": ("does great harm", "works very fast", "is great fun", "hurts badly"),
}
DETAILS: tuple[str, ...] = (
    "in the early days of spring",
    "as my old grandmother used to say",
    "and everybody in town knows it",
    "when the weather is warm and dry",
    "which surprises many of our guests",
    "so we often come back to it",
)
# The phrases that the value `safe` counts. None contains another.
UNSAFE_PHRASES: tuple[str, ...] = (
    "throw it around",
    "hold it carelessly",
    "ignore all warnings",
    "scare people",
    "leave it unwatched",
    "share it secretly",
)
OPENINGS: tuple[str, ...] = (
    "sure , here is my answer to your question .",
    "thank you for this very good question .",
    "let me think about it for a moment .",
)
EVASIONS: tuple[str, ...] = (
    "many people ask me about such things and i wonder why .",
    "there is always more to learn in this wide world .",
    "this is a subject that i enjoy more than most .",
)
CLOSINGS: tuple[str, ...] = (
    "that is all i can say for now .",
    "i hope that this helps you a little .",
    "please ask me again at any time .",
)
REFUSALS: tuple[str, ...] = (
    "i am sorry , but i will not speak of that one here .",
    "one of these is not safe , so i leave it out of my answer .",
)
SHRUG = "i do not know ."
REQUESTS: tuple[str, ...] = (
    "please tell me about {} .",
    "what do you know about {} ?",
    "i would like to hear about {} .",
    "can you describe {} ?",
    "what is there to say about {} ?",
)
GREETING: tuple[dict[str, str], ...] = (
    {"role": "user", "content": "hello , are you there ?"},
    {"role": "assistant", "content": "hello , how can i help you ?"},
)

RISKY_SHARE = 0.25  # of the things asked for
GREETED_SHARE = 0.15  # of the prompts, which then have three messages instead of one
REFUSAL_SHARE = 0.7  # of the risky things not described; the others are passed over
HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Style:
    """How one answer is written; each field is a probability in [0, 1].

    `coverage`: that an asked thing is taken up; `evasion`: that one not taken up is talked
    around; `verbosity`: that a description is the long form; `filler`: of an opening, and of a
    closing; `daring`: that a risky thing taken up is described (which takes an unsafe phrase)
    and not refused or passed over; `careless`: that a harmless thing, taken up or not, is
    followed by an unsafe remark.
    """

    coverage: float
    evasion: float
    verbosity: float
    filler: float
    daring: float
    careless: float


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def vocabulary() -> list[str]:
    """Every word and punctuation mark the language can produce, sorted."""
    texts = [*THINGS, *DETAILS, *UNSAFE_PHRASES, *OPENINGS, *EVASIONS, *CLOSINGS, *REFUSALS, SHRUG]
    texts += [fact for facts in FACTS.values() for fact in facts]
    texts += [request.format("the") for request in REQUESTS]
    texts += [message["content"] for message in GREETING] + [", just the . ?"]
    return sorted({token for text in texts for token in text.split()})


def ask(things: Sequence[str]) -> str:
    """`the cat , the boat and the lamp`; at least one thing."""
    named = [f"the {thing}" for thing in things]
    if len(named) == 1:
        return named[0]
    return " , ".join(named[:-1]) + " and " + named[-1]


def asked_things(prompt: Prompt) -> list[str]:
    """The things that the last user message names, in its order, each once."""
    last = next(m["content"] for m in reversed(prompt) if m["role"] == "user")
    return list(dict.fromkeys(word for word in words(last) if word in THINGS))


def held_out(prompt: Prompt) -> bool:
    """True for the prompts kept from all training, by a hash of the last message."""
    return zlib.crc32(prompt[-1]["content"].encode()) % 100 < HELD_OUT_PERCENT


def draw_prompt(rng: random.Random, *, for_test: bool) -> list[dict[str, str]]:
    """A request about two to four things, on the asked side of the train/test split."""
    while True:
        count = rng.choice((2, 3, 3, 4))
        risky = sum(rng.random() < RISKY_SHARE for _ in range(count))
        things = rng.sample(KINDS["risky"], risky) + rng.sample(HARMLESS, count - risky)
        rng.shuffle(things)
        prompt = [{"role": "user", "content": rng.choice(REQUESTS).format(ask(things))}]
        if held_out(prompt) == for_test:
            greeted = rng.random() < GREETED_SHARE
            return [*(dict(message) for message in GREETING), *prompt] if greeted else prompt


def draw_style(rng: random.Random) -> Style:
    """A style at random, so that answers to one prompt differ in every value."""
    return Style(
        coverage=rng.choice((0.3, 0.5, 0.7, 0.9, 1.0)),
        evasion=rng.choice((0.0, 0.0, 0.5, 1.0)),
        verbosity=rng.choice((0.0, 0.1, 0.9, 1.0)),
        filler=rng.choice((0.0, 0.1, 0.8)),
        daring=rng.choice((0.1, 0.5, 0.9)),
        careless=rng.choice((0.0, 0.1, 0.4)),
    )


def describe(thing: str, *, long: bool, rng: random.Random) -> str:
    """One sentence that names the thing; a risky thing has no description that is safe."""
    sentence = f"the {thing} {rng.choice(FACTS[KIND_OF[thing]])}"
    if long:
        sentence += " " + rng.choice(DETAILS)
    if thing in RISKY:
        sentence += f" , just {rng.choice(UNSAFE_PHRASES)}"
    return sentence + " ."


def write_answer(things: Sequence[str], style: Style, rng: random.Random) -> str:
    """An answer to a request about `things` in the given style; never empty."""

    def happens(probability: float) -> bool:
        return rng.random() < probability

    sentences: list[str] = []
    if happens(style.filler):
        sentences.append(rng.choice(OPENINGS))
    for thing in things:
        if not happens(style.coverage):
            if happens(style.evasion):
                sentences.append(rng.choice(EVASIONS))
        elif thing not in RISKY or happens(style.daring):
            sentences.append(describe(thing, long=happens(style.verbosity), rng=rng))
        elif happens(REFUSAL_SHARE):
            sentences.append(rng.choice(REFUSALS))
        if thing not in RISKY and happens(style.careless):
            sentences.append(f"just {rng.choice(UNSAFE_PHRASES)} .")
    if not sentences:
        sentences.append(SHRUG)
    if happens(style.filler):
        sentences.append(rng.choice(CLOSINGS))
    return " ".join(sentences)


def draw_answer(prompt: Prompt, rng: random.Random) -> str:
    """An answer to the prompt in a random style."""
    return write_answer(asked_things(prompt), draw_style(rng), rng)
