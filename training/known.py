"""Keep in an included model's list what it draws: ``python -m training.known``.

Eight images of every prompt, as published, are named by the classifier (``judge.py``), four of a
thing in a colour. A prompt of which three of four are right stays in the text encoder's header, as
``growth --export`` or ``finer --export`` wrote it. Two images of each are saved, to be looked at:
what cannot be named from these belongs in ``words.json`` (``unclear``), which ``words.py`` takes
off the list.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints.files import read_header
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.sampling.sampler import sample
from diversevar_core.text.encoder import load_text_encoder

from .colours import colour_of, colour_prompts
from .data import contact_sheet
from .edits_data import COLOURS
from .judge import read_judge
from .loop import autocast
from .tokenizer import to_pixels

PLAIN, COLOURED, RIGHT = 8, 4, 0.75  # images of a prompt, and the share that must be right
COLUMNS = 24


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.known", description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models/emoji"))
    parser.add_argument("--judge", type=Path, default=Path("tests/judge.safetensors"))
    parser.add_argument("--folder", type=Path, default=Path("finer-training"), help="for images")
    args = parser.parse_args()

    path = args.models / "text_encoder.safetensors"
    model = load_model(args.models / "transformer.safetensors")
    vae = load_vae(args.models / "vae.safetensors")
    text, (judge, named) = load_text_encoder(path), read_judge(args.judge)
    header = read_header(path)["__metadata__"]
    coloured = {prompt: (thing, colour) for prompt, thing, colour in colour_prompts()}
    kept, shown = [], []
    for prompt in json.loads(header["prompts"]):
        thing, colour = (prompt, None) if prompt in named else coloured[prompt]
        condition = Text(text([prompt])).repeat(COLOURED if colour else PLAIN)
        how = model.schedule(), model.defaults(), range(len(condition))
        with autocast():
            *_, last = sample(model, vae, condition, *how)
            made = to_pixels(vae.decode(last.f_hat))
        right = judge.judge(made).concept.argmax(1) == named.index(thing)
        if colour:
            right &= colour_of(made) == list(COLOURS).index(colour)
        if right.float().mean() >= RIGHT:
            kept.append(prompt)
            shown.append(made[:2])
        else:
            print(f"left out: {prompt}, {right.sum()} of {len(right)} right", flush=True)
    header["prompts"] = json.dumps(kept)
    save_file(load_file(path), path, header)
    sheet = torch.cat(shown)
    white = sheet.new_full((-len(sheet) % COLUMNS, *sheet.shape[1:]), 255)
    args.folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(torch.cat((sheet, white)).numpy(), COLUMNS).save(args.folder / "known.png")
    print(f"{len(kept)} prompts")


if __name__ == "__main__":
    main()
