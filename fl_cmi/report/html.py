"""One page with all of a run in it: no scripts, no network, pictures inside."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fl_cmi.files import whole
from fl_cmi.report.attacks import attack_lines, client_marks
from fl_cmi.report.compression import report_line
from fl_cmi.report.elements import bar, bullets, cards, flat, page, pairs, picture, section, table
from fl_cmi.report.measured import measured_rows
from fl_cmi.report.units import byte_size, duration, percent
from fl_cmi.report.workers import worker_rows

__all__ = ["write_distillation", "write_report"]


def write_report(run_dir: Path, summary: dict[str, Any], command: str | None = None) -> Path:
    """Write `report.html` of a federated run into `run_dir`, from the summary and the run's pictures.

    Args:
        run_dir: The run folder; `partition.png`, `curves.png`, `synthetic.png` in it are embedded, if there.
        summary: What `summary.json` holds.
        command: The command line that repeats the run.

    Returns:
        The page's path.
    """
    title = f"{summary['strategy']} on {summary['partition']['name']}, seed {summary['seed']}"
    rounds = "1 round" if summary["rounds"] == 1 else f"{summary['rounds']} rounds"
    parts = [
        _head(summary, title, [f"{len(summary['clients'])} clients", rounds], command),
        _headline(summary),
        _clients(summary["clients"]),
        _attacks(summary),
        _partition(run_dir, summary["partition"]),
        _pictures(run_dir),
        _measures(summary),
        _compressed(summary),
        _time(summary),
        _traffic(summary),
        _privacy(summary),
        _provenance(summary),
    ]
    return _write(run_dir, title, parts)


def write_distillation(run_dir: Path, summary: dict[str, Any], command: str | None = None) -> Path:
    """Write `report.html` of an un-federated run; arguments and result as for `write_report`."""
    teacher, student = summary["teacher"], summary["student"]
    names = f"{teacher['architecture']} to {student['architecture']}"
    title = f"Data-free distillation, {names}, seed {summary['seed']}"
    done = [f"{summary['images']:,} images synthesized", f"{summary['teacher_passes']:,} teacher passes"]
    parts = [
        _head(summary, title, done, command),
        _pair(summary),
        _pictures(run_dir),
        _measures(summary),
        _time(summary),
        _provenance(summary),
    ]
    return _write(run_dir, title, parts)


def _write(run_dir: Path, title: str, parts: Sequence[str]) -> Path:
    path = run_dir / "report.html"
    with whole(path) as draft:
        draft.write_text(page(title, parts), encoding="utf-8")
    return path


def _head(summary: dict[str, Any], title: str, facts: list[str], command: str | None) -> str:
    if "total" in summary["seconds"]:
        facts = [*facts, duration(summary["seconds"]["total"])]
    if summary.get("commit"):
        commit, dirty = summary["commit"][:10], summary["commit"].endswith("-dirty")
        facts = [*facts, f"commit {commit}{' with local changes' if dirty else ''}"]
    shown = f"<pre>{escape(command)}</pre>" if command else ""
    return f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(" · ".join(facts))}</p>\n{shown}'


def _pair(summary: dict[str, Any]) -> str:
    student, teacher = summary["student"], summary["teacher"]
    best = f"Student, best look (epoch {student['epoch_best']}): {percent(student['accuracy_best'])}"
    return (
        cards(
            [
                (
                    "student",
                    "Student, at the end",
                    percent(student["accuracy_last"]),
                    "the result, on test images",
                ),
                ("ensemble", "Teacher", percent(teacher["accuracy"]), "the bound"),
                ("gap", "Gap", percent(summary["gap"]).removesuffix(" %"), "points, student to teacher"),
                ("average", "Agreement", percent(summary["agreement"]), "same class, on test images"),
            ]
        )
        + f'\n<p class="soft">{escape(best)}, chosen on test images: not a result.</p>'
    )


def _headline(summary: dict[str, Any]) -> str:
    student, gap = summary["student"], summary.get("gap")
    average = summary.get("average", {}).get("accuracy")
    mixed = len({row["architecture"] for row in summary["clients"]}) > 1
    numbers = [
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
    if summary.get("own_tests") is not None:
        own = percent(summary["own_tests"])
        numbers.append(("average", "Own tests", own, "each client on its own test images"))
    best = ""
    if student.get("accuracy_best") is not None:
        text = f"Student, best round ({student['round_best']}): {percent(student['accuracy_best'])}"
        best = f'<p class="soft">{escape(text)}, chosen on test images: not a result.</p>'
    return f"{cards(numbers)}\n{best}"


def _clients(clients: list[dict[str, Any]]) -> str:
    marks = client_marks(clients)
    rows = [
        (
            str(row["client"]),
            percent(row["accuracy"]),
            bar(row["accuracy"] or 0.0),
            f"{row['num_examples']:,}",
            row["architecture"],
            *(mark[number] for mark in marks.values()),
        )
        for number, row in enumerate(clients)
    ]
    header = ("client", "test accuracy", "", "examples", "architecture", *marks)
    return section("Clients, each alone", table(header, rows, numbers=(0, 1, 3), bars=(2,)))


def _attacks(summary: dict[str, Any]) -> str:
    """Who was bad; nothing where nobody was."""
    found = summary.get("attacks")
    return section("Attacks", bullets(attack_lines(found))) if found else ""


def _partition(run_dir: Path, partition: dict[str, Any]) -> str:
    rows = [("name", partition["name"])]
    rows += flat(partition.get("params", {}))
    rows += [("hash", partition["hash"])]
    rows += [("note", note) for note in partition.get("notes", ())]
    heatmap = picture(run_dir / "partition.png", "Clients by classes, images of each", "chart", "")
    return section("Partition", pairs(rows) + heatmap)


def _pictures(run_dir: Path) -> str:
    lines = picture(run_dir / "curves.png", "Accuracy and loss terms over epochs", "chart", "")
    grid = picture(
        run_dir / "synthetic.png",
        "Synthetic images, one row for each class",
        "pictures",
        "Made from the teachers alone; one row for each class, of the quarter that they are surest about.",
    )
    return (section("Accuracy and losses", lines) if lines else "") + (
        section("Synthetic images", grid) if grid else ""
    )


def _measures(summary: dict[str, Any]) -> str:
    """What the synthetic images are worth; nothing of a run without any."""
    rows = measured_rows(summary.get("synthetic"))
    return (
        section("Synthetic images, measured", table(("measure", "value", "meaning"), rows, numbers=(1,)))
        if rows
        else ""
    )


def _compressed(summary: dict[str, Any]) -> str:
    """The model at fewer bits; nothing where none was asked for."""
    found = summary.get("compressed")
    return section("Compressed", bullets([report_line(found)])) if found else ""


def _time(summary: dict[str, Any]) -> str:
    seconds = dict(summary["seconds"])
    total = seconds.pop("total", None)
    longest = total or max(seconds.values(), default=0.0)
    rows = [
        (phase, duration(value), bar(value / longest if longest else 0.0)) for phase, value in seconds.items()
    ]
    last = [("total", duration(total), "")] if total is not None else []
    phases = table(("phase", "time", ""), rows + last, numbers=(1,), bars=(2,), total=bool(last))
    workers = worker_rows(summary.get("workers"))
    more = table(("workers of the server", "", ""), workers, numbers=(1,)) if workers else ""
    return section("Time", phases + more)


def _traffic(summary: dict[str, Any]) -> str:
    ways = (("up", "up, from the clients"), ("down", "down, to the clients"))
    moved = [
        (label, byte_size(summary["bytes"][way]), f"{summary['bytes'][way]:,} bytes") for way, label in ways
    ]
    return section("Traffic", table(("direction", "size", "exactly"), moved, numbers=(1, 2)))


def _privacy(summary: dict[str, Any]) -> str:
    disclosed = bullets(summary.get("disclosed", []))
    failures = summary.get("failures", [])
    rows = [(str(row["round"]), str(row["client"]), row["kind"], row["message"]) for row in failures]
    failed = table(("round", "client", "what", "message"), rows, numbers=(0, 1)) if rows else "<p>None.</p>"
    lost = sum(not row.get("retried") for row in failures)  # the others were asked again
    mark = f' <span class="bad">{lost}</span>' if lost else ""
    return section("What left each client", disclosed) + f"<section><h2>Failures{mark}</h2>{failed}</section>"


def _provenance(summary: dict[str, Any]) -> str:
    rows = [("seed", str(summary["seed"])), ("commit", summary.get("commit") or "unknown")]
    rows += [("student digest", summary["digest"])] if "digest" in summary else []
    rows += list(summary.get("versions", {}).items())
    config = pairs(flat(summary.get("config", {})), kind="plain config")
    settings = f"<details open><summary>Configuration</summary>{config}</details>"
    return section("To repeat it", pairs(rows)) + settings
