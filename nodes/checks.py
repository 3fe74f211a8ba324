"""Check a node's inputs against its schema before it runs.

ComfyUI checks the values of widgets, but of linked inputs only the type's name.
"""

from collections.abc import Sequence
from functools import wraps
from numbers import Integral, Real

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..diversevar_core.errors import UserError, quote
from ..diversevar_core.job import Chain
from ..diversevar_core.text.encoder import check_characters

# socket type -> whether an object is of that type
SOCKETS = {
    "IMAGE": lambda value: isinstance(value, Tensor) and value.ndim == 4,
    "MASK": lambda value: isinstance(value, Tensor) and value.ndim in (2, 3, 4),
    "LATENT": lambda value: isinstance(value, dict) and isinstance(value.get("samples"), Tensor),
    "CONDITIONING": lambda value: isinstance(value, list) and len(value) > 0,
    "CLIP": lambda value: hasattr(value, "encode_from_tokens_scheduled"),
    "CLIP_VISION": lambda value: hasattr(value, "encode_image"),
    "DIVERSEVAR_MODEL": lambda value: isinstance(value, ModelPatcher),
    "DIVERSEVAR_METHOD": lambda value: isinstance(value, Chain),
}
LISTED = 20  # choices that an error message lists


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make a node check its inputs before it runs; an optional input may be None."""
    execute = node.execute.__func__

    @classmethod
    @wraps(execute)
    def check_and_execute(cls, **inputs) -> io.NodeOutput:
        schema = cls.define_schema()
        if schema.is_input_list:
            for given in schema.inputs:
                for value in inputs.get(given.id, ()):
                    check(given, value)
        else:
            check_all(schema.inputs, inputs)
        return execute(cls, **inputs)

    node.execute = check_and_execute
    return node


def check_all(inputs: Sequence[io.Input], values: dict[str, object]) -> None:
    """Check every input's value; an optional input that is None is removed."""
    for given in inputs:
        if given.optional and values.get(given.id) is None:
            values.pop(given.id, None)
        else:
            check(given, values.get(given.id))


def check(given: io.Input, value: object) -> None:
    """Raise UserError if a value does not fit its input."""
    match given:
        case io.Int.Input():
            check_number(given, value, Integral, "a whole number")
        case io.Float.Input():
            check_number(given, value, Real, "a number")
        case io.Boolean.Input():
            if not isinstance(value, Integral):
                raise UserError(f"{given.id} must be true or false, not {quote(value)}.")
        case io.Combo.Input():
            check_choice(given.id, value, given.options)
        case io.DynamicCombo.Input():
            check_dynamic(given, value)
        case io.String.Input():
            if not isinstance(value, str):
                raise UserError(f"{given.id} must be a text, not {quote(value)}.")
            check_characters(given.id, value)
        case _:
            check_object(given, value)


def check_dynamic(given: io.DynamicCombo.Input, value: object) -> None:
    """Check a choice and the inputs of its option: {input's name: choice, other name: value}."""
    chosen = value.get(given.id) if isinstance(value, dict) else value
    options = {option.key: option.inputs for option in given.options}
    check_choice(given.id, chosen, list(options))
    check_all(options[chosen], value)


def check_choice(name: str, value: object, choices: list[str]) -> None:
    """Raise UserError if a value is not one of the choices."""
    if not (isinstance(value, str) and value in choices):
        listed = ", ".join(map(quote, choices[:LISTED]))
        more = ", ..." if len(choices) > LISTED else ""
        raise UserError(f"{name} has no {quote(value)}, only {listed}{more}.")


def check_number(given: io.Input, value: object, kind: type, words: str) -> None:
    """Raise UserError if a value is not a number of this kind in the input's range."""
    if not isinstance(value, kind):
        raise UserError(f"{given.id} must be {words}, not {quote(value)}.")
    if not given.min <= value <= given.max:
        raise UserError(f"{given.id} must be from {given.min} to {given.max}, not {value}.")


def check_object(given: io.Input, value: object) -> None:
    """Raise UserError if an object is not of its socket's type, or empty."""
    kind = given.io_type
    if not SOCKETS.get(kind, lambda value: True)(value):
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{given.id} takes {kind}, but something else is connected ({what}).")
    tensor = value["samples"] if kind == "LATENT" else value
    if isinstance(tensor, Tensor) and tensor.numel() == 0:
        raise UserError(f"{given.id} is empty (shape {list(tensor.shape)}); connect another.")
