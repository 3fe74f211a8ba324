"""Prompt and negative prompt in one node."""

from comfy_api.latest import io

from ..diversevar_core.text.encoder import check_prompt


class EncodeText(io.ComfyNode):
    """What two stock CLIP Text Encode nodes would do."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREncodeText",
            display_name="VAR Encode Text",
            category="DiverseVAR",
            description="Turns a prompt, and a negative prompt if you have one, into conditioning.",
            search_aliases=["var", "infinity", "prompt", "clip text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load VAR Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture should show, up to 512 tokens.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to steer away from; empty uses the model's own.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    def execute(cls, clip, prompt, negative) -> io.NodeOutput:
        check_prompt(prompt)
        texts = (prompt, negative)
        return io.NodeOutput(*(clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in texts))


NODES = [EncodeText]
