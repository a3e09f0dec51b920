"""How bad clients, and trust in clients, read."""

from collections.abc import Sequence
from typing import Any

from fl_cmi.report.units import percent

__all__ = ["attack_lines", "client_marks"]


def attack_lines(attacks: dict[str, Any]) -> list[str]:
    """Who was bad, and how far they got, a phrase each."""
    names = ", ".join(map(str, attacks["clients"]))
    lines = [f"{attacks['attack']} by {'client' if len(attacks['clients']) == 1 else 'clients'} {names}"]
    for model, share in (attacks["success"] or {}).items():
        lines.append(f"success on the {model}: {percent(share)} of test images judged as the attack wants")
    return lines


def client_marks(clients: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Columns of the clients' table, by head, that only some runs have: trust, and who attacks."""
    columns = {
        "trust": [percent(row.get("trust")) for row in clients],
        "attack": [row.get("attack") or "" for row in clients],
    }
    return {
        head: texts for head, texts in columns.items() if any(row.get(head) is not None for row in clients)
    }
