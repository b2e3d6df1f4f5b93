"""Renders a document of blocks as Markdown or HTML. Pure.

Names and reasons come from other machines, so everything except plots is escaped in both formats.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rltop.backend.util.printable import one_line


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the document's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Sentences; ``strong`` ones are emphasised."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of (name, text) items; an empty name is left out."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Preformatted lines, such as commands or aligned tables."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """A table."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class SvgBlock:
    """An SVG element."""

    svg: str


Block = Heading | Paragraph | Bullets | Code | TableBlock | SvgBlock

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 2px 8px; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
pre { background: #f6f6f6; padding: 8px; overflow-x: auto; font-size: 12px; }
svg { display: block; margin: 4px 0 14px; max-width: 100%; height: auto; }
"""


def markdown(blocks: Iterable[Block]) -> str:
    """Markdown with inline SVG."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def as_html(title: str, blocks: Iterable[Block]) -> str:
    """One self-contained HTML file."""
    body = "\n".join(map(_html, blocks))
    head = f'<meta charset="utf-8"><title>{_escaped(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, strong):
            return f"**{_plain(text)}**" if strong else _plain(text)
        case Bullets(items):
            return "\n".join(f"- {f'*{_plain(name)}*: ' if name else ''}{_plain(text)}" for name, text in items)
        case Code(text):
            lines = [one_line(line).rstrip() for line in text.splitlines()]
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return "\n".join([fence, *lines, fence])
        case TableBlock(heads, rows):
            every = [heads, ["---"] * len(heads), *rows]
            return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in every)
        case SvgBlock(svg):
            return svg


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Paragraph(text, strong):
            return f"<p><strong>{_escaped(text)}</strong></p>" if strong else f"<p>{_escaped(text)}</p>"
        case Bullets(items):
            rendered = (f"{f'<em>{_escaped(name)}</em>: ' if name else ''}{_escaped(text)}" for name, text in items)
            return "<ul>" + "".join(f"<li>{item}</li>" for item in rendered) + "</ul>"
        case Code(text):
            return "<pre>" + "\n".join(map(_escaped, text.splitlines())) + "</pre>"
        case TableBlock(heads, rows):
            head = "".join(f"<th>{_escaped(cell)}</th>" for cell in heads)
            body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return f"<table><tr>{head}</tr>{body}</table>"
        case SvgBlock(svg):
            return svg


def _escaped(text: str) -> str:
    return html.escape(one_line(text))


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    escaped = html.escape(one_line(text), quote=False)
    for sign in "\\`*_[]|#~":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped.strip()
