"""One page with all of a run in it: no scripts, no network, pictures inside."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fl_cmi.report.style import STYLE
from fl_cmi.report.units import byte_size, duration, percent

__all__ = ["write_report"]

# The browser is told to load nothing: the page could call nobody even if a value slipped through unescaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run_dir: Path, summary: dict[str, Any], command: str | None = None) -> Path:
    """Write `report.html` into `run_dir`, from the summary and the run's pictures.

    Args:
        run_dir: The run folder; `partition.png`, `curves.png`, `synthetic.png` in it are embedded, if there.
        summary: What `summary.json` holds.
        command: The command line that repeats the run.

    Returns:
        The page's path.
    """
    title = f"{summary['strategy']} on {summary['partition']['name']}, seed {summary['seed']}"
    parts = [
        _head(summary, title, command),
        _headline(summary),
        _clients(summary["clients"]),
        _partition(run_dir, summary["partition"]),
        _pictures(run_dir),
        _cost(summary),
        _privacy(summary),
        _provenance(summary),
    ]
    body = "\n".join(parts)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _head(summary: dict[str, Any], title: str, command: str | None) -> str:
    rounds = "1 round" if summary["rounds"] == 1 else f"{summary['rounds']} rounds"
    facts = [f"{len(summary['clients'])} clients", rounds]
    if "total" in summary["seconds"]:
        facts.append(duration(summary["seconds"]["total"]))
    if summary.get("commit"):
        commit, dirty = summary["commit"][:10], summary["commit"].endswith("-dirty")
        facts.append(f"commit {commit}{' with local changes' if dirty else ''}")
    shown = f"<pre>{escape(command)}</pre>" if command else ""
    return f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(" · ".join(facts))}</p>\n{shown}'


def _headline(summary: dict[str, Any]) -> str:
    student, gap = summary["student"], summary.get("gap")
    average = summary.get("average", {}).get("accuracy")
    mixed = len({row["architecture"] for row in summary["clients"]}) > 1
    cards = [
        ("student", "Student, last round", percent(student["accuracy_last"]), "the result, on test images"),
        (
            "ensemble",
            "Ensemble",
            percent(summary.get("ensemble", {}).get("accuracy")),
            "of the clients, the bound",
        ),
        ("gap", "Gap", percent(gap).removesuffix(" %"), "points, student to ensemble"),
        (
            "average",
            "Parameter average",
            percent(average),
            "architectures differ" if average is None and mixed else "of the clients",
        ),
    ]
    best = ""
    if student.get("accuracy_best") is not None:
        text = f"Student, best round ({student['round_best']}): {percent(student['accuracy_best'])}"
        best = f'<p class="soft">{escape(text)}, chosen on test images: not a result.</p>'
    filled = [
        f'<div class="card {kind}"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for kind, name, value, note in cards
    ]
    return f'<div class="cards">{"".join(filled)}</div>\n{best}'


def _clients(clients: list[dict[str, Any]]) -> str:
    rows = [
        (
            str(row["client"]),
            percent(accuracy),
            _bar(accuracy or 0.0),
            f"{row['num_examples']:,}",
            row["architecture"],
        )
        for row in clients
        for accuracy in [row["accuracy"]]
    ]
    header = ("client", "test accuracy", "", "examples", "architecture")
    return _section("Clients, each alone", _table(header, rows, numbers=(0, 1, 3), bars=(2,)))


def _partition(run_dir: Path, partition: dict[str, Any]) -> str:
    rows = [("name", partition["name"])]
    rows += _flat(partition.get("params", {}))
    rows += [("hash", partition["hash"])]
    rows += [("note", note) for note in partition.get("notes", ())]
    picture = _picture(run_dir / "partition.png", "Clients by classes, images of each", "chart", "")
    return _section("Partition", _pairs(rows) + picture)


def _pictures(run_dir: Path) -> str:
    lines = _picture(run_dir / "curves.png", "Accuracy and loss terms over epochs", "chart", "")
    grid = _picture(
        run_dir / "synthetic.png",
        "Synthetic images, one row for each class",
        "pictures",
        "Made on the server from the clients' models; one row for each class, of the quarter"
        " that the ensemble is surest about.",
    )
    return (_section("Accuracy and losses", lines) if lines else "") + (
        _section("Synthetic images", grid) if grid else ""
    )


def _cost(summary: dict[str, Any]) -> str:
    seconds = dict(summary["seconds"])
    total = seconds.pop("total", None)
    longest = total or max(seconds.values(), default=0.0)
    rows = [
        (phase, duration(value), _bar(value / longest if longest else 0.0))
        for phase, value in seconds.items()
    ]
    last = [("total", duration(total), "")] if total is not None else []
    time = _table(("phase", "time", ""), rows + last, numbers=(1,), bars=(2,), total=bool(last))
    ways = (("up", "up, from the clients"), ("down", "down, to the clients"))
    moved = [
        (label, byte_size(summary["bytes"][way]), f"{summary['bytes'][way]:,} bytes") for way, label in ways
    ]
    return _section("Time", time) + _section(
        "Traffic", _table(("direction", "size", "exactly"), moved, numbers=(1, 2))
    )


def _privacy(summary: dict[str, Any]) -> str:
    disclosed = _list(summary.get("disclosed", []))
    failures = summary.get("failures", [])
    rows = [(str(row["round"]), str(row["client"]), row["reason"]) for row in failures]
    failed = _table(("round", "client", "reason"), rows, numbers=(0, 1)) if rows else "<p>None.</p>"
    mark = f' <span class="bad">{len(failures)}</span>' if failures else ""
    return (
        _section("What left each client", disclosed) + f"<section><h2>Failures{mark}</h2>{failed}</section>"
    )


def _provenance(summary: dict[str, Any]) -> str:
    rows = [("seed", str(summary["seed"])), ("commit", summary.get("commit") or "unknown")]
    rows += [("student digest", summary["digest"])] if "digest" in summary else []
    rows += list(summary.get("versions", {}).items())
    config = _pairs(_flat(summary.get("config", {})), kind="plain config")
    settings = f"<details open><summary>Configuration</summary>{config}</details>"
    return _section("To repeat it", _pairs(rows)) + settings


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """A nested configuration as pairs of dotted key and value, the way the command line takes them."""
    if isinstance(value, dict) and value:
        return [
            pair
            for name, part in value.items()
            for pair in _flat(part, f"{key}.{name}" if key else str(name))
        ]
    if value == {} and not key:
        return []
    return [(key, _literal(value))]


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_literal(part)}" for name, part in value.items()) + "}"
    return str(value)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _bar(fraction: float) -> str:
    """The style of a bar that fills this part of its cell."""
    return f"width:{100 * min(1.0, max(0.0, fraction)):.1f}%"


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    bars: Sequence[int] = (),
    total: bool = False,
) -> str:
    """A table of texts, escaped here; columns in `numbers` stand right, those in `bars` are `_bar` styles."""

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


def _pairs(rows: Sequence[tuple[str, str]], kind: str = "plain") -> str:
    lines = [f"<tr><td>{escape(key)}</td><td><code>{escape(value)}</code></td></tr>" for key, value in rows]
    return f'<div class="wide"><table class="{kind}"><tbody>{"".join(lines)}</tbody></table></div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else "<p>Nothing.</p>"


def _picture(path: Path, label: str, kind: str, caption: str) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img class="{kind}" alt="{escape(label)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{image}</div>{below}</figure>'
