"""Check a node's inputs against its schema before it runs.

ComfyUI checks the values of widgets, but of linked inputs only the type's name.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from numbers import Integral, Real

from comfy_api.latest import io
from comfy_execution.graph_utils import is_link
from torch import Tensor

from ..diversevar_core.errors import UserError, check_choice, quote
from ..diversevar_core.text.encoder import check_characters


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make a node check its inputs before it runs, except those that its validate_inputs checks.

    Optional inputs that are not there, or None, are left out, or have their default.
    """
    execute = node.execute.__func__
    own = signature(node.validate_inputs).parameters

    @classmethod
    @wraps(execute)
    def check_and_execute(cls, **values) -> io.NodeOutput:
        schema = cls.define_schema()
        if schema.is_input_list:
            checks = {field.id: partial(check, field) for field in schema.inputs}
            lists = {name: [*map(checks[name], listed)] for name, listed in values.items()}
            return execute(cls, **lists)
        check_names(schema.inputs, values)
        checked = check_all([field for field in schema.inputs if field.id not in own], values)
        return execute(cls, **{name: values[name] for name in own if name in values}, **checked)

    node.execute = check_and_execute
    return node


def check_names(fields: Sequence[io.Input], values: dict[str, object]) -> None:
    """Raise UserError if an option's input lacks its choice's name, as clients may send it."""
    known = {field.id for field in fields}
    for field in fields:
        for option in getattr(field, "options", []):
            for inner in getattr(option, "inputs", []):
                if inner.id in values.keys() - known:
                    raise UserError(
                        f"{inner.id} is an input of {field.id}; call it {field.id}.{inner.id}."
                    )


def check_all(fields: Sequence[io.Input], values: dict[str, object]) -> dict[str, object]:
    """The values of these inputs; UserError if one does not fit."""
    checked = {}
    for field in fields:
        value = values.get(field.id)
        if value is None and field.optional:
            value = getattr(field, "default", None)
        if value is not None or not field.optional:
            checked[field.id] = check(field, value)
    return checked


def check(field: io.Input, value: object) -> object:
    """The value of an input; UserError if it does not fit."""
    match field:
        case io.Int.Input():
            check_number(field, value, Integral, "a whole number")
        case io.Float.Input():
            check_number(field, value, Real, "a number")
        case io.Combo.Input():
            check_choice(field.id, value, field.options)
        case io.DynamicCombo.Input():
            return with_inputs(field, value)
        case io.String.Input():
            check_characters(field.id, value)
        case io.Image.Input() | io.Mask.Input():
            check_tensor(field.id, value)
        case io.Latent.Input():
            for tensor in (value["samples"], value.get("noise_mask")):
                if tensor is not None:
                    check_tensor(field.id, tensor)
    return value


def with_inputs(field: io.DynamicCombo.Input, value: object) -> dict[str, object]:
    """A choice and the inputs of its option: {field's name: choice, other name: value}.

    ComfyUI passes only a valid choice made on the node like this; a linked or unknown one, as sent.
    """
    nested = isinstance(value, dict) and field.id in value
    choice = value[field.id] if nested else value
    options = {option.key: option.inputs for option in field.options}
    check_choice(field.id, choice, list(options))
    if options[choice] and not nested:
        raise UserError(
            f"{field.id} is linked, and {quote(choice)} has inputs of its own; choose it on the "
            "node."
        )
    return {field.id: choice} | check_all(options[choice], value if nested else {})


def check_number(field: io.Input, value: object, kind: type, words: str) -> None:
    """Raise UserError if a value is not a number of this kind in the input's range."""
    if not (isinstance(value, kind) and field.min <= value <= field.max):
        raise UserError(
            f"{field.id} must be {words} from {field.min} to {field.max}, not {quote(value)}."
        )


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise UserError if an image, mask or latent is empty or has numbers that are not finite."""
    empty = tensor.numel() == 0
    if empty or not tensor.isfinite().all():
        what = f"is empty (shape {list(tensor.shape)})" if empty else "contains NaN or infinity"
        raise UserError(f"{name} {what}; check the node that makes it.")


def without_missing_nodes(nodes: Sequence[type[io.ComfyNode]]) -> Callable[[dict], dict]:
    """A handler of prompts: choices that are linked to a node that is not there become None.

    ComfyUI does not look at such a link, and its queue would end with it (docs/upstream.md); a
    choice that is None is refused.
    """
    choices = {
        schema.node_id: tuple(
            field.id for field in schema.inputs if isinstance(field, io.DynamicCombo.Input)
        )
        for schema in (node.define_schema() for node in nodes)
    }

    def handle(data: dict) -> dict:
        prompt = data.get("prompt", {})
        for node in prompt.values():
            ours = choices.get(node.get("class_type"), ())
            for name, value in node.get("inputs", {}).items():
                if name.startswith(ours) and is_link(value) and value[0] not in prompt:
                    node["inputs"][name] = None
        return data

    return handle
