"""Extension of griffe: two habits of our docstrings in the words that mkdocstrings knows."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Renames ``Example:``, and shows names that are marked for Sphinx as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Look at the docstring of one object."""
        if obj.docstring:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = re.sub(r":\w+:`(?:~[\w.]*\.)?([\w.]+)`", r"`\1`", text)
