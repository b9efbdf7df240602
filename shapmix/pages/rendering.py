"""Rendering of the page templates."""

from __future__ import annotations

from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """HTML of a file in `templates/`; values are escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shapmix.pages"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(values)
