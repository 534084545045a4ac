"""What the import hook of jaxtyping puts on every function: shapes and dtypes of arrays are checked, calls as they go.

Annotations without an array are pyright's: a check of each at every call would cost time and find what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONF = BeartypeConf(is_pep484_tower=True)  # an int where a float is expected is one


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose annotations are checked where one of them names the shape of an array."""
    if not any(_holds_shape(hint) for hint in function.__annotations__.values()):
        return function
    return beartype(function, conf=CONF)


def _holds_shape(hint: Any) -> bool:
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, AbstractArray)
    return any(_holds_shape(part) for part in get_args(hint))
