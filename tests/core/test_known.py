"""Words of a prompt that are new to a small model are named."""

import pytest

from diversevar_core.checkpoints import included
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.text.known import unseen

PROMPTS = ("red apple", "green apple", "dragon", "dragon face", "octopus")


@pytest.mark.parametrize("prompt", ["octopus", "A red apple.", "the dragon face"])
def test_known_prompts_give_no_warning(prompt):
    assert unseen(prompt, PROMPTS) is None


def test_new_words_are_named_and_three_near_prompts():
    assert unseen("a red sports car", PROMPTS) == (
        "This model does not know the words 'sports', 'car'; "
        "it knows 'red apple', 'green apple', 'dragon'."
    )


def test_known_words_that_are_new_together():
    sentence = unseen("a green dragon", PROMPTS)
    assert sentence.startswith("This model does not know these words together; it knows ")
    assert sentence.count("'dragon'") == 1 and "'green apple'" in sentence


def test_the_included_model_carries_its_prompts():
    assert "octopus" in included.prompts() and len(included.prompts()) >= 197
    encoder = load_text_encoder(included.TEXT_ENCODER)
    assert encoder.unseen("octopus") is None
    assert "'zeppelin'" in encoder.unseen("a zeppelin")


def test_a_text_encoder_without_a_list_says_nothing(text_encoder):
    assert load_text_encoder(text_encoder).unseen("anything at all") is None


def test_the_command_line_says_it(command_line, tmp_path):
    said = [
        command_line("sample", "--prompt", prompt, "--out", tmp_path / "a.png").stderr
        for prompt in ("octopus", "a zeppelin")
    ]
    assert said[0] == "" and "does not know the word 'zeppelin'" in said[1]
