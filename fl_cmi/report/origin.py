"""Where saved images come from: a pool that was made of data must not pass for one that was not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Origin", "origin_of"]

ENTRY = "fl_cmi pool 1"
"""The header's one entry, because safetensors writes several in any order."""


@dataclass(frozen=True)
class Origin:
    """What `pool.safetensors` says of its images.

    Args:
        data_free: Whether nobody's image was looked at.
        synthesizer: The class that made them; None where none did, or nobody knows.
        terms: By name, what it optimized.
    """

    data_free: bool = True
    synthesizer: str | None = None
    terms: Sequence[str] = ()

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        return {ENTRY: json.dumps(asdict(self))}

    @classmethod
    def read(cls, metadata: Mapping[str, str] | None) -> "Origin":
        """From such a header; files that say nothing are taken for synthetic, as all were when none did.

        Raises:
            ValueError: It says something else.
        """
        if ENTRY not in (metadata or {}):
            return cls()
        found = json.loads((metadata or {})[ENTRY])
        told = found if isinstance(found, dict) else {}
        free, name, terms = told.get("data_free"), told.get("synthesizer"), told.get("terms", [])
        fits = isinstance(terms, list) and all(isinstance(term, str) for term in terms)
        if not (isinstance(free, bool) and isinstance(name, str | None) and fits):
            raise ValueError(f"its header does not say where it comes from, but {str(found)[:80]}")
        return cls(free, name, tuple(terms))


def origin_of(node: Mapping[str, Any]) -> Origin:
    """Of the images that the synthesizer of this node makes."""
    terms = node.get("inversion", {}).get("terms", {})
    used = tuple(name for name, term in terms.items() if term.get("weight", 1) != 0)
    return Origin(True, str(node["_target_"]).rsplit(".", 1)[-1], used)
