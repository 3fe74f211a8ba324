"""What is typed is drawn as a prompt that the small model knows, and what is left out is said."""

import json
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.files import read_header
from diversevar_core.convert import convert
from diversevar_core.errors import UserError
from diversevar_core.text.encoder import load_text_encoder

PROMPTS = set(included.prompts())


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(included.TEXT_ENCODER)


def drawn(prompt: str) -> str:
    return f"drawn: {prompt}"


def without(prompt: str, *new: str) -> str:
    return f"drawn: {prompt}; new to this model and left out: {', '.join(new)}"


AS_TYPED = [
    *("octopus", "Octopus", "OCTOPUS", " octopus ", "octopus\n", "an octopus", "the octopus."),
    *("Red apple!", "the red apple", "french fries", "Statue of Liberty", "the statue of liberty"),
    *("cooked rice", "fork and knife with plate", "T-Rex", "T. rex", "jack-o-lantern"),
    *("house with a garden", "t-rex", "a cat face", "birthday cake", "blue butterfly"),
    *("a picture of a fox", "draw me an owl", "2nd place medal", "cloud with lightning and rain"),
    *("ship", "house with garden", "a zebra", "soccer ball"),
]
OTHERS = {
    # one or many
    "cats": drawn("cat"),
    "foxes": drawn("fox"),
    "strawberries": drawn("strawberry"),
    "mice": drawn("mouse"),
    "wolves": drawn("wolf"),
    "tomatoes": drawn("tomato"),
    "Butterflies": drawn("butterfly"),
    "grape": drawn("grapes"),
    "peanut": drawn("peanuts"),
    "two dogs": without("dog", "two"),
    "3 penguins": without("penguin", "3"),
    # other words for the same thing
    "kitten": drawn("cat"),
    "puppy": drawn("dog"),
    "bunny": drawn("rabbit"),
    "car": drawn("automobile"),
    "a plane": drawn("airplane"),
    "doggy": drawn("dog"),
    "tea": drawn("hot beverage"),
    "cup of tea": drawn("hot beverage"),
    "donut": drawn("doughnut"),
    "apple": drawn("red apple"),
    "moon": drawn("full moon"),
    "burger": drawn("hamburger"),
    "cheeseburger": drawn("hamburger"),
    "soup": drawn("pot of food"),
    "ladybug": drawn("lady beetle"),
    "bee": drawn("honeybee"),
    "boat": drawn("sailboat"),
    "coffee cup": drawn("hot beverage"),
    "pumpkin": drawn("jack o lantern"),
    "gift": drawn("wrapped gift"),
    "corn": drawn("ear of corn"),
    "milk": drawn("glass of milk"),
    "orange": drawn("tangerine"),
    "heart": drawn("red heart"),
    "computer": drawn("desktop computer"),
    "wizard": drawn("man mage"),
    "astronaut": drawn("woman astronaut"),
    "girl with red hair": drawn("woman red hair"),
    "shoes": drawn("running shoe"),
    "policeman": drawn("woman police officer"),
    "gun": drawn("water pistol"),
    "home": drawn("house"),
    "snow": drawn("snowflake"),
    "beer": drawn("beer mug"),
    # what is not known beside what is
    "a cat on the moon": without("cat", "moon"),
    "banana with sunglasses": "drawn: banana; one thing at a time, so left out: sunglasses",
    "Eiffel tower": without("tokyo tower", "Eiffel"),
    "slice of watermelon": without("watermelon", "slice"),
    "snow leopard": without("leopard", "snow"),
    "birthday cake with candles": "drawn: birthday cake; one thing at a time, so left out: candles",
    "a bowl of rice": without("cooked rice", "bowl"),
    "a field of sunflowers": without("sunflower", "field"),
    "a tower of cards": without("tokyo tower", "cards"),
    "chocolate cake": without("shortcake", "chocolate"),
    "rainbow unicorn": "drawn: unicorn; one thing at a time, so left out: rainbow",
    "dog and cat": "drawn: dog; one thing at a time, so left out: cat",
    "dog, cat": "drawn: dog; one thing at a time, so left out: cat",
    "a fox and two owls in a forest": "drawn: fox; new to this model and left out: two, forest; "
    "one thing at a time, so left out: owls",
    "a happy cat": without("cat", "happy"),
    "a cat sleeping on a chair": "drawn: cat; new to this model and left out: sleeping; "
    "one thing at a time, so left out: chair",
    "portrait of a woman": without("woman", "portrait"),
    # colours
    "blue car": drawn("blue automobile"),
    "a red sports car on a beach": without("red automobile", "beach"),
    "a big pink fluffy cat": without("pink cat", "big", "fluffy"),
    "red car": drawn("red automobile"),
    "red flowers": drawn("red hibiscus"),
    "goldfish": drawn("yellow fish"),
    "golden key": drawn("yellow key"),
    "blue red apple": drawn("blue apple"),
    "two red cats": without("red cat", "two"),
    "a green dragon": drawn("green dragon face"),
    "💙": drawn("blue heart"),
    "a cute cat": without("cat", "cute"),
    "grey cat": without("cat", "grey"),
    "brown bear": without("bear", "brown"),
    "a blue-eyed cat": without("cat", "blue", "eyed"),
    "light blue penguin": without("penguin", "light", "blue"),
    "a car painted blue": without("automobile", "painted", "blue"),
    "cat in a blue house": "drawn: cat; one thing at a time, so left out: blue house",
    "a blue cup of tea": without("hot beverage", "blue"),
    "two cats": without("cat", "two"),
    "a spaceship over the sea": without("rocket", "sea"),
    "woman with a dog": "drawn: woman; one thing at a time, so left out: dog",
    "a penguin riding a surfboard": without("penguin", "riding", "surfboard"),
    "hot air balloon": without("balloon", "hot", "air"),
    # emoji
    "🐙": drawn("octopus"),
    "🐈": drawn("cat"),
    "❄️": drawn("snowflake"),
    "❄": drawn("snowflake"),
    "🐈‍⬛": drawn("black cat"),
    "🐱🌙": "drawn: cat face; one thing at a time, so left out: 🌙",
    "🐶🐱": "drawn: dog face; one thing at a time, so left out: 🐱",
    "🤖": drawn("robot"),
    "🤖 🏽": drawn("robot"),
    "👩‍🚀": drawn("woman astronaut"),
    "🐙 with 🎩": "drawn: octopus; one thing at a time, so left out: 🎩",
    "👍🏽 🍕": "drawn: thumbs up; one thing at a time, so left out: 🍕",
    "🐱‍👤": without("cat face", "👤"),
    "🍕🇮🇹": without("pizza", "🇮🇹"),
    "1️⃣ 🍎": without("red apple", "1"),
    # Chinese
    "章鱼": drawn("octopus"),
    "章魚": drawn("octopus"),
    "一只猫": drawn("cat"),
    "貓": drawn("cat"),
    "小狗": drawn("dog"),
    "苹果": drawn("red apple"),
    "蘋果": drawn("red apple"),
    "火箭": drawn("rocket"),
    "汽车": drawn("automobile"),
    "机器人": drawn("robot"),
    "蓝色的汽车": drawn("blue automobile"),
    "红猫": drawn("red cat"),
    "一只红色的苹果": drawn("red apple"),
    "绿色的苹果": drawn("green apple"),
    "蓝色的金鱼": drawn("blue fish"),
    "粉色爱心": drawn("pink heart"),
    "青铜钥匙": without("key", "青铜"),
    "月亮上的猫": "drawn: cat; one thing at a time, so left out: 月亮",
    "狗和猫": "drawn: dog; one thing at a time, so left out: 猫",
    "茶": drawn("hot beverage"),
    "披薩": drawn("pizza"),
    # Japanese
    "タコ": drawn("octopus"),
    "ネコ": drawn("cat"),
    "ねこ": drawn("cat"),
    "猫": drawn("cat"),
    "りんご": drawn("red apple"),
    "桜": drawn("cherry blossom"),
    "ロケット": drawn("rocket"),
    "犬と猫": "drawn: dog; one thing at a time, so left out: 猫",
    "赤い車": drawn("red automobile"),
    "ロボット": drawn("robot"),
    "猫の絵": drawn("cat"),
    "お茶": drawn("hot beverage"),
}
NOTHING_KNOWN = {
    "kitchen": None,
    "blue": {"blue automobile", "blue cat", "blue heart"},
    "king": {"crown", "prince", "princess", "castle"},
    "zombie": {"skull", "ghost", "bat"},
    "cyberpunk city at night": {"office building", "classical building", "bank", "castle", "house"},
    "raccoon": {"fox", "cat face", "wolf", "bear", "panda", "chipmunk"},
    "accordion": {"guitar", "trumpet", "violin", "saxophone", "musical keyboard"},
    "radio": {"headphone", "microphone", "musical note", "television", "telephone"},
    "sofa": {"chair", "seat", "bed"},
    "fruit": {"grapes", "melon", "watermelon", "lemon", "banana", "pear", "peach", "red apple"},
    "knight on horseback": None,
    "zeppelin": None,
    "Superman": None,
    "🇯🇵": None,
    "piñata": None,
    "xyzzy": None,
    "42": None,
    "the": None,
    "please draw me a picture of it": None,
    "请画一个": None,
    "...": None,
}


@pytest.mark.parametrize("text", AS_TYPED)
def test_what_is_known_as_typed_says_nothing(text, encoder):
    prompt, said = encoder.read(text)
    assert prompt in PROMPTS and said is None


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_say_what_is_drawn(text, encoder):
    prompt, said = encoder.read(text)
    assert said == OTHERS[text] and prompt == re.match("drawn: ([^;]*)", said)[1]
    assert prompt in PROMPTS


@pytest.mark.parametrize("text", NOTHING_KNOWN)
def test_where_nothing_is_known_three_near_prompts_are_named(text, encoder):
    with pytest.raises(UserError, match="This model does not know") as caught:
        encoder.read(text)
    sentence = str(caught.value)
    named = re.findall("'(.+?)'", sentence.rpartition("knows")[2])
    assert "\n" not in sentence and len(set(named)) == 3
    assert set(named) <= PROMPTS
    assert set(named) <= (NOTHING_KNOWN[text] or set(named))


def test_every_prompt_gives_the_tokens_that_it_gave_before(encoder):
    """Each as it is listed, with an article, a capital and a full stop."""
    for prompt in PROMPTS:
        tokens = encoder.tokenizer.encode(prompt).ids
        for text in (prompt, f"a {prompt}", f"The {prompt}.", prompt.capitalize(), f"{prompt} "):
            assert encoder.tokenizer.encode(encoder.read(text)[0]).ids == tokens


def test_a_trailing_space_changes_nothing(encoder):
    features, other = encoder(["octopus", "octopus "])
    assert torch.equal(features, other)


def test_large_models_read_nothing(text_encoder):
    assert load_text_encoder(text_encoder).read("anything at all ") == ("anything at all ", None)


EDITS = {
    "Make it blue.": ("make it blue", None),
    "paint it red please": ("paint it red", None),
    "make the car blue": ("make it blue", without("make it blue", "car")),
    "green": ("make it green", drawn("make it green")),
    "把它变成蓝色": ("make it blue", without("make it blue", "把它变成")),
}


@pytest.mark.parametrize("text", EDITS)
def test_instructions_are_read_too(text):
    encoder = load_text_encoder(included.FOLDER / "emoji-edit" / "text_encoder.safetensors")
    assert encoder.read(text) == EDITS[text]
    with pytest.raises(UserError, match="'make it red', 'make it yellow' and 'make it green'"):
        encoder.read("turn it into a zeppelin")


def test_a_file_lists_phrases_of_prompts_only_and_they_are_small():
    header = read_header(included.TEXT_ENCODER)["__metadata__"]
    phrases = json.loads(header["phrases"])
    assert {prompt for meant in phrases for prompt in meant.split("|")} <= PROMPTS
    assert all(meant.count("|") in (0, 2) for meant in phrases)
    assert len(header["phrases"].encode()) < 150_000


@pytest.mark.parametrize(
    "changes, listed",
    [
        ({"phrases": "[1]"}, False),
        ({"phrases": '{"octopus": 1}'}, False),
        ({"prompts": "[1]"}, False),
        ({"prompts": "[]"}, False),
        ({"prompts": "octopus"}, False),
        ({"phrases": "{}"}, True),
        ({}, True),
    ],
)
def test_broken_lists_are_no_lists(changes, listed, tmp_path):
    header = read_header(included.TEXT_ENCODER)["__metadata__"] | changes
    save_file(load_file(included.TEXT_ENCODER), tmp_path / "t5.safetensors", header)
    shutil.copy(included.TEXT_ENCODER.parent / "tokenizer.json", tmp_path)
    encoder = load_text_encoder(tmp_path / "t5.safetensors")
    if listed:
        assert encoder.read("Octopus!") == ("octopus", None)
    else:
        assert encoder.read("Octopus!") == ("Octopus!", None)


def test_converted_files_keep_their_lists(tmp_path):
    convert(included.TEXT_ENCODER, tmp_path / "t5.safetensors")
    assert load_text_encoder(tmp_path / "t5.safetensors").read("kitten") == ("cat", drawn("cat"))


def test_long_texts_are_read_quickly_and_said_shortly(encoder):
    words = " ".join(f"word{i}" for i in range(20_000))
    started = time.monotonic()
    prompt, said = encoder.read(f"octopus {words} 猫" + "犬" * 20_000)
    assert prompt == "octopus" and len(said) < 500 and said.count("\n") == 0
    assert time.monotonic() - started < 10  # measured 0.5
    with pytest.raises(UserError) as caught:
        encoder.read(words)
    assert len(str(caught.value)) < 500


def test_the_command_line_says_it(command_line, tmp_path):
    def sample(*arguments):
        return command_line("sample", *arguments, "--out", tmp_path / "a.png")

    assert sample("--prompt", "octopus").stderr == ""
    assert sample("--prompt", "a cat on the moon").stderr.strip() == without("cat", "moon")
    refused = sample("--prompt", "a zeppelin")
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert "This model does not know 'a zeppelin'" in refused.stderr
    assert sample("--prompt", "octopus", "--negative", "blurry").returncode != 0
