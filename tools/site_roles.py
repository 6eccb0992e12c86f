"""For the site's API page: ``:meth:`name``` of a docstring becomes ```name```, as Markdown has no roles."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

__all__ = ["Roles"]

_ROLE = re.compile(r":\w+:`(?:~[\w.]*\.)?([^`]+)`")


class Roles(Extension):
    """Writes the docstrings' roles as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
