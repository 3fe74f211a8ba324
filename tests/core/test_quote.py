"""Quoted texts in errors are printable, short and recognisable."""

import os

import pytest

from diversevar_core.errors import MOST, quote


@pytest.mark.parametrize(
    "text", ["\ud800", os.fsdecode(b"caf\xe9.safetensors"), "a\nb\x1b[31m", "\u202e", "x" * 100_000]
)
def test_whatever_is_repeated_can_be_encoded_and_is_short(text):
    quoted = quote(text)
    quoted.encode("utf-8")
    assert quoted.isprintable() and len(quoted) <= MOST + 5 + 8


@pytest.mark.parametrize("text", ["red apple", "C:\\models\\vae", "模型.safetensors", "~/a b.pth"])
def test_what_people_write_stays_as_it_is(text):
    assert quote(text) == f"'{text}'"


def test_both_ends_of_a_long_path_stay():
    quoted = quote("/home/" + "x" * 1000 + "/model.safetensors")
    assert quoted.startswith("'/home/") and quoted.endswith("/model.safetensors'")
