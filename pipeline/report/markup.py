"""Render the HTML templates of the reports. Jinja2 escapes all values; what terminals obey is removed from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pipeline.core.disk import replacing
from pipeline.core.errors import UserError
from pipeline.core.text import plain


@functools.cache
def _templates() -> Any:
    """Jinja2 environment. Imported here, so that nothing but writing a page loads Jinja2."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    made = jinja2.Environment(
        autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, finalize=readable, trim_blocks=True
    )
    made.filters["number"] = "{:,}".format
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def render(template: str, **values: Any) -> Any:
    """Markup (a str that templates do not escape again) from a template and its values."""
    from markupsafe import Markup

    return Markup(_templates().get_template(template).render(values))


def readable(value: Any) -> Any:
    """Make a value's text `plain`; Markup stays."""
    return value if hasattr(value, "__html__") else plain(str(value))


def write(out: Path, data: str | bytes) -> Path:
    """Replace `out` by a file that is complete from the start. Returns `out`. Raises UserError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_bytes(data.encode(errors="replace") if isinstance(data, str) else data)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", "give another --out, a file") from None
    return out
