"""The names of the model and its modes."""

from collections.abc import Mapping
from typing import Any

from mmrl.errors import nearest
from mmrl.serving.engine import Engine
from mmrl.serving.limits import ApiError

MODE_HEADER = "x-mmrl-mode"


def mode_of_model(
    body: Mapping[str, Any], headers: Mapping[str, str], engine: Engine
) -> tuple[str, str]:
    """(the model as the client named it, the mode).

    NAME:MODE asks for a mode, else the header x-mmrl-mode does. Raises `ApiError` 404 for another
    model or mode.
    """
    name = body.get("model")
    if not isinstance(name, str):
        raise ApiError(400, "model must be a name", "model")
    mode = headers.get(MODE_HEADER, engine.default_mode)
    of_mode = f" with a mode {mode!r}" if name == engine.name else ""
    if name != engine.name:
        base, _, suffix = name.rpartition(":")
        mode = suffix if base == engine.name else ""
    if mode not in engine.modes:
        known = served_names(engine)
        raise ApiError(
            404,
            f"there is no model {name!r} here{of_mode}.{nearest(name, known)} There are "
            f"{', '.join(known)}",
            "model",
            "model_not_found",
        )
    return name, mode


def served_names(engine: Engine) -> list[str]:
    return [engine.name, *(f"{engine.name}:{mode}" for mode in engine.modes)]
