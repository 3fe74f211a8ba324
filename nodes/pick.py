"""Pick Image: one image of a contact sheet, with its prompt and seed."""

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..diversevar_core.errors import UserError
from . import contact_sheet


class Pick(io.ComfyNode):
    """The image that I like, to go on from."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARPick",
            display_name="Pick Image",
            category="DiverseVAR/analysis",
            description="Picks one image, by the numbers on its Contact Sheet, with its prompt and "
            "seed: to make variations of it, or to draw it with another preset or model.",
            search_aliases=[
                "pick image",
                "choose image",
                "select image",
                "image from batch",
                "keep",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                contact_sheet.images(),
                contact_sheet.prompts(),
                contact_sheet.seeds(),
                io.Int.Input("row", default=1, min=1, max=4096, tooltip="The row on the sheet."),
                io.Int.Input(
                    "number", default=1, min=1, max=4096, tooltip="The image's number in its row."
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The image."),
                io.String.Output(display_name="prompt", tooltip="Its prompt."),
                io.Int.Output(display_name="seed", tooltip="Its seed."),
            ],
        )

    @classmethod
    def execute(cls, images, row, number, prompts=(), seeds=()) -> io.NodeOutput:
        rows = contact_sheet.rows_of(images, prompts, seeds)
        [row], [number] = row, number
        if row > len(rows):
            raise UserError(f"There is no row {row} on the sheet, only {len(rows)}.")
        prompt, shown, labels = rows[row - 1]
        if number > len(shown):
            raise UserError(f"There is no image {number} in row {row}, only {len(shown)}.")
        image, label = shown[number - 1], labels[number - 1] if labels else ""
        seed = int(label) if label.isdecimal() else unknown("seed")
        preview = ui.PreviewImage(image, cls=cls)
        return io.NodeOutput(image, prompt or unknown("prompt"), seed, ui=preview)


def unknown(what: str) -> ExecutionBlocker:
    """In place of an output that is not known: an error if a node takes it."""
    return ExecutionBlocker(f"Pick Image does not know the {what}; connect its {what}s input.")


NODES = [Pick]
