"""VAR Encode Prompts: one prompt a line -> as many conditionings."""

from comfy_api.latest import io

from ..diversevar_core.errors import UnknownPromptError
from ..diversevar_core.text.combinations import prompts_of
from .sample import said_of
from .shown import shown

ALIASES = [
    "clip text encode", "prompt list", "multiple prompts", "prompt matrix", "combinatorial prompts",
    "wildcards", "batch prompts", "flan t5",
    "提示词列表", "多个提示词", "提示詞清單", "プロンプトリスト",
]  # fmt: skip


class EncodePrompts(io.ComfyNode):
    """The stock CLIP Text Encode, for a list of prompts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREncodePrompts",
            display_name="VAR Encode Prompts",
            category="DiverseVAR",
            description="Encodes prompts, one a line; {red|green} apple is two of them. What "
            "follows runs once for every prompt, with the same seeds.",
            search_aliases=ALIASES,
            is_output_node=True,  # so that its notes are shown if all of a run is cached, too
            inputs=[
                io.Clip.Input("clip", tooltip="From Load VAR CLIP, or any other model's."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,  # the page would choose one of the words at random
                    tooltip="What to see, one prompt a line. {red|green} apple writes out every "
                    "combination.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    is_output_list=True, tooltip="Each prompt, for positive of the sampler."
                ),
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="Each prompt's text, for Contact Sheet and Pick Image.",
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        prompts, encoded, notes, unknown = [], [], [], []
        for prompt in prompts_of(text):
            try:
                tokens = clip.tokenize(prompt)
            except UnknownPromptError as error:
                unknown.append(error)
                notes.append(f"{error} This prompt is left out.")
            else:
                prompts.append(prompt)
                encoded.append(clip.encode_from_tokens_scheduled(tokens))
                notes += said_of(encoded[-1])
        if not prompts:
            raise unknown[0]
        lines = [f"{len(prompts)} prompts: {' | '.join(prompts)}"] if len(prompts) > 1 else []
        return io.NodeOutput(encoded, prompts, ui=shown(notes, *lines))


NODES = [EncodePrompts]
