"""What both pages are put together with: templates, packed data, plotly.js, a policy that lets only our scripts run.

A page is one file that opens from disk with the network off. Its data travel as gzip in base64, whose alphabet cannot
end a script element; its scripts run because their hashes stand in the page's Content-Security-Policy, and nothing else
does.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reports.figures.style import DARK
from reports.tables import replace_surrogates, write_atomically

TEMPLATES = Path(__file__).parent / "templates"
EARLY = "theme_early.js"  # the one script that runs before the first paint


def pack(data: bytes) -> str:
    """Return `data` as gzip in base64; the same bytes give the same text (no time stamp)."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def pack_json(value: Any) -> str:
    """Return a JSON value packed; lone surrogates become U+FFFD. A nan is our own fault: JSON has no word for it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return pack(replace_surrogates(text).encode("utf-8"))


@cache
def packed_plotly() -> str:
    """Return plotly.js packed, once a process."""
    return pack(get_plotlyjs().encode("utf-8"))


def hash_source(text: str) -> str:
    """Return the Content-Security-Policy source that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def render_page(template: str, out: Path, *, scripts: Sequence[str], styles: Sequence[str], **context: Any) -> Path:
    """Return `out`, the page drawn from `template` with its scripts and styles inlined, written whole or not at all.

    Scripts are joined in order into one module, so a later one sees what an earlier one declares.
    """
    script = "\n".join(read_asset(name) for name in scripts)
    style = "\n".join(read_asset(name) for name in styles)
    early = read_asset(EARLY)
    assert "</script" not in (script + early).lower(), scripts
    assert "</style" not in style.lower(), styles
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {hash_source(early)} {hash_source(script)} {hash_source(get_plotlyjs())}",
            "style-src 'unsafe-inline'",  # plotly.js styles its own SVG; styles cannot fetch: no source is allowed
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    html = (
        environment()
        .get_template(template)
        .render(
            policy=policy,
            early=Markup(early),
            script=Markup(script),
            style=Markup(style),
            plotly=packed_plotly(),
            dark_colours=pack_json(dict(DARK)),
            **context,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, replace_surrogates(html).encode("utf-8"))
    return out


@cache
def environment() -> jinja2.Environment:
    """Return the Jinja environment: every value is escaped, a name that is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def read_asset(name: str) -> str:
    """Return the text of a script or style sheet of the package."""
    return (TEMPLATES / name).read_text(encoding="utf-8")
