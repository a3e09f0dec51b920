"""The pieces of a page: sections, tables, pictures. Text is escaped here; what is called a body is HTML already."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fl_cmi.report.style import STYLE

__all__ = ["bar", "bullets", "cards", "flat", "page", "pairs", "picture", "section", "table"]

# The browser is told to load nothing: the page could call nobody even if a value slipped through unescaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def cards(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Big numbers: kind (a style), name, value, note."""
    filled = [
        f'<div class="card {kind}"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for kind, name, value, note in rows
    ]
    return f'<div class="cards">{"".join(filled)}</div>'


def flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """A nested configuration as pairs of dotted key and value, the way the command line takes them."""
    if isinstance(value, dict) and value:
        return [
            pair for name, part in value.items() for pair in flat(part, f"{key}.{name}" if key else str(name))
        ]
    if value == {} and not key:
        return []
    return [(key, literal(value))]


def literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {literal(part)}" for name, part in value.items()) + "}"
    return str(value)


def section(title: str, body: str) -> str:
    """A part of the page under a heading; `body` is HTML already."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def bar(fraction: float) -> str:
    """The style of a bar that fills this part of its cell."""
    return f"width:{100 * min(1.0, max(0.0, fraction)):.1f}%"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    bars: Sequence[int] = (),
    total: bool = False,
) -> str:
    """A table of texts, escaped here; columns in `numbers` stand right, those in `bars` are `bar` styles."""

    def cells(row: Sequence[str], tag: str) -> Iterator[str]:
        for column, text in enumerate(row):
            if column in bars:
                yield f'<{tag} class="bar">{f"""<i style="{text}"></i>""" if text else ""}</{tag}>'
            else:
                kind = ' class="number"' if column in numbers else ' class="whole"'
                yield f"<{tag}{kind}>{escape(str(text))}</{tag}>"

    head = f"<thead><tr>{''.join(cells(header, 'th'))}</tr></thead>"
    lines = [f"<tr>{''.join(cells(row, 'td'))}</tr>" for row in rows]
    if total:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def pairs(rows: Sequence[tuple[str, str]], kind: str = "plain") -> str:
    """Keys and values, one pair a line."""
    lines = [f"<tr><td>{escape(key)}</td><td><code>{escape(value)}</code></td></tr>" for key, value in rows]
    return f'<div class="wide"><table class="{kind}"><tbody>{"".join(lines)}</tbody></table></div>'


def bullets(lines: Sequence[str]) -> str:
    """A list of texts, or the word that there are none."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else "<p>Nothing.</p>"


def picture(path: Path, label: str, kind: str, caption: str) -> str:
    """A PNG inside the page with a caption, if any; nothing where there is no such file."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img class="{kind}" alt="{escape(label)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{image}</div>{below}</figure>'
