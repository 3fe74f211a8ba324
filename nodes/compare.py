"""Two rows of pictures under their captions."""

from comfy_api.latest import io

from ..diversevar_core.images import captioned_rows
from . import inputs


class Compare(io.ComfyNode):
    """The same seeds, one way above and another below."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARCompare",
            display_name="Compare Rows",
            category="DiverseVAR",
            description="Lays two batches out as captioned rows in one picture, so that the same "
            "seeds stand above each other.",
            search_aliases=["diverse", "grid", "contact sheet", "a/b", "vanilla and diverse"],
            inputs=[
                io.Image.Input("above", tooltip="The upper row."),
                io.Image.Input("below", tooltip="The lower row, of the same seeds."),
                io.String.Input("caption_above", default="vanilla", tooltip="Over the upper row."),
                io.String.Input("caption_below", default="diverse", tooltip="Over the lower row."),
            ],
            outputs=[io.Image.Output(tooltip="Both rows as one picture.")],
        )

    @classmethod
    def execute(cls, above, below, caption_above, caption_below) -> io.NodeOutput:
        rows = [
            (caption, inputs.rgb(socket, images).cpu())
            for caption, socket, images in (
                (caption_above, "above", above),
                (caption_below, "below", below),
            )
        ]
        return io.NodeOutput(captioned_rows(rows).movedim(0, -1)[None])


NODES = [Compare]
