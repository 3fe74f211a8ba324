"""Write other phrases for an included model's prompts into its text encoder's header:
``python -m training.words``.

From Unicode's CLDR, by the npm package emojibase-data: the emoji itself, its names in English,
Chinese and Japanese, its names in chats, and those of its keywords that name the thing (as "kitten"
does for a cat, and "pet" does not). ``words.json`` lists these, and chooses where several prompts
share a word. Other names and keywords are new to the model, and get three prompts near in meaning.
It also names the prompts of each model whose images could not be named, or that it was not trained
on to the end (``unclear``); they are taken off the list of what the model knows. The weights stay
as they are.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints.files import read_header
from diversevar_core.text.reading import EMPTY, key, singulars

from .colours import THINGS, colour_prompts
from .data import install

LANGUAGES = ("en", "zh", "zh-hant", "ja")
CHATS = ("cldr", "github", "iamcal", "joypixels", "emojibase")
COMPONENTS, SYMBOLS, FLAGS = 2, 8, 9  # groups of emoji
NEAR = 3
PREPOSITION = re.compile(r" (?:of|with|without|in|on|at|behind|for) ")
WORDS = json.loads(Path(__file__).with_suffix(".json").read_text())


@dataclass(frozen=True, eq=False)
class Emoji:
    """What CLDR says of an emoji: its English name, folded, names (the first is the emoji itself),
    names in chats, keywords by language, place in CLDR's order, group and kind.
    """

    name: str
    names: Sequence[str]
    chats: Sequence[str]
    keywords: dict[str, Sequence[str]]
    order: int
    group: int
    kind: str


def read_emoji(folder: Path) -> list[Emoji]:
    """All emoji in CLDR's order, from the npm package, which is installed into ``folder``."""
    root = install(folder, "emojibase-data@17") / "emojibase-data"

    def content(file: str):
        return json.loads((root / f"{file}.json").read_text())

    kinds = {kind["order"]: kind["key"] for kind in content("en/messages")["subgroups"]}
    chats, entries, found = [content(f"en/shortcodes/{chat}") for chat in CHATS], {}, []
    for language in LANGUAGES:
        for entry in content(f"{language}/data"):
            entries.setdefault(entry["hexcode"], {})[language] = entry
    for order, (code, of) in enumerate(entries.items()):
        english = of["en"]
        if english.get("group", COMPONENTS) in (COMPONENTS, FLAGS):
            continue
        said = [chat.get(code, ()) for chat in chats]
        said = [name for names in said for name in ([names] if isinstance(names, str) else names)]
        found.append(
            Emoji(
                key(english["label"]),
                [
                    english["emoji"].replace("\ufe0f", ""),
                    *(entry["label"] for entry in of.values()),
                ],
                [name.replace("_", " ") for name in said if not name[-1].isdigit()],
                {language: entry.get("tags", ()) for language, entry in of.items()},
                order,
                english["group"],
                kinds[english["subgroup"]],
            )
        )
    return found


def phrases_for(prompts: Sequence[str], emoji: Sequence[Emoji]) -> dict[str, str]:
    """A prompt, or three near ones -> phrases, as ``known_phrases`` takes them."""
    prompt_of = {key(prompt): prompt for prompt in prompts}
    known = [one for one in emoji if one.name in prompt_of]
    meaning, found = dict(prompt_of), defaultdict(list)

    def add(meant: str, phrases: Iterable[str]) -> None:
        for phrase in phrases:
            if key(phrase) not in meaning and key(phrase) not in EMPTY:
                meaning[key(phrase)] = meant
                found[meant].append(phrase.lower())

    for colour, phrases in WORDS["colours"].items():
        coloured = [(p, thing) for p, thing, c in colour_prompts() if c == colour and p in prompts]
        for prompt, thing in coloured:
            alike = [other for other, own in WORDS["alike"].items() if own == thing]
            add(prompt, [f"{colour} {name}" for name in (thing, *alike)])
        if len(coloured) >= NEAR:
            add("|".join(prompt for prompt, _ in coloured[:NEAR]), phrases.split("|"))
    for meant, phrases in WORDS["chosen"].items():
        if {*meant.split("|")} <= {*prompts}:
            add(meant, phrases.split("|"))
    meaning.setdefault("", "")  # of keywords that are only marks
    for one in known:
        add(prompt_of[one.name], one.names)
    plain = sorted(known, key=lambda one: one.name.count(" "))  # a cat before a cat's face
    for one in plain:  # a "red car" is the car in another colour
        own = WORDS["colours"] if prompt_of[one.name] in THINGS else ()
        chats = (name for name in one.chats if name.partition(" ")[0] not in own)
        add(prompt_of[one.name], chats)
    naming = {language: {*words.split()} for language, words in WORDS["keywords"].items()}
    for one in plain:
        for language, words in one.keywords.items():
            add(prompt_of[one.name], (word for word in words if word in naming[language]))
    drawn = {*meaning, *(one for phrase in meaning for one in singulars(phrase))}
    for name, phrases, bearers in new_phrases(emoji):
        near = meaning.get(name) or "|".join(prompt_of[one.name] for one in nearest(bearers, known))
        if near:
            add(near, (one for one in phrases if not {*heads(key(one))} & drawn))
    return {meant: "|".join(phrases) for meant, phrases in found.items()}


def new_phrases(emoji: Sequence[Emoji]) -> Iterator[tuple[str, Sequence[str], Sequence[Emoji]]]:
    """Names of emoji and English keywords; of each a folded name, and whom it belongs to."""
    bearers = defaultdict(list)
    for one in emoji:
        for word in one.keywords["en"]:
            bearers[word].append(one)
        words = one.name.split()
        gendered = len(words) > 1 and {"man", "woman", "men", "women"} & {*words}
        if one.group != SYMBOLS:
            yield one.name, one.names[:1] if gendered else (*one.names, *one.chats), [one]
    for word, ones in bearers.items():
        yield key(word), [word], ones


def nearest(bearers: Sequence[Emoji], known: Sequence[Emoji]) -> Sequence[Emoji]:
    """Three known emoji near to these, or none: some of these, then those in CLDR's order.

    CLDR puts like by like: a zebra is between a unicorn and a deer. Where too few emoji of that
    kind are known, ``words.json`` has others.
    """
    own = [one for one in bearers if one in known]
    first = (own or bearers)[0]
    others = [one for one in known if one.group == first.group]
    others.sort(key=lambda one: (one.kind != first.kind, abs(one.order - first.order)))
    listed = [kin.split("|") for kinds, kin in WORDS["kin"].items() if first.kind in kinds.split()]
    if listed and sum(one.kind == first.kind for one in known) < NEAR:
        named = {one.name: one for one in known}
        others = [named[name] for name in listed[0] if name in named]
    near = list(dict.fromkeys((*own, *others)))[:NEAR]
    return near if len(near) == NEAR else ()


def heads(phrase: str) -> Iterator[str]:
    """What an English phrase says the thing is, in one or many: a shooting star is a star.

    Such a phrase is not new to a model that knows the thing.
    """
    thing = PREPOSITION.split(phrase)[0].rpartition(" ")[2]
    yield from (thing, *singulars(thing)) if phrase.isascii() else ()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.words", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("emoji-data"), help="for the package")
    parser.add_argument("--models", type=Path, default=Path("models/emoji"))
    args = parser.parse_args()

    path = args.models / "text_encoder.safetensors"
    header = read_header(path)["__metadata__"]
    unclear = {*WORDS["unclear"].get(args.models.name, "").split("|")}
    prompts = [prompt for prompt in json.loads(header["prompts"]) if prompt not in unclear]
    phrases = phrases_for(prompts, read_emoji(args.folder / "npm"))
    header["prompts"] = json.dumps(prompts)
    header["phrases"] = json.dumps(phrases, ensure_ascii=False, separators=(",", ":"))
    save_file(load_file(path), path, header)
    count = sum(words.count("|") + 1 for words in phrases.values())
    print(f"{len(prompts)} prompts, {count} phrases in {len(header['phrases'].encode())} bytes")


if __name__ == "__main__":
    main()
