"""How the measures of a synthetic set read."""

from typing import Any

from fl_cmi.report.units import percent

__all__ = ["measured_rows"]


def measured_rows(synthetic: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each measure of `fl_cmi.measures.measure_pool`; none of a run without images."""
    if not synthetic:
        return []
    return [
        ("class balance", f"{synthetic['balance']:.3f}", "1: equal shares of all classes"),
        ("confidence", percent(synthetic["confidence"]), "mean highest probability"),
        ("as aimed", percent(synthetic["aimed"]), "in the class they were made for"),
        ("Frechet distance", f"{synthetic['frechet']:.4g}", "0: features as of real images"),
        (
            "diversity",
            f"{synthetic['diversity']:.4g}",
            f"in a class; real: {synthetic['diversity_real']:.4g}",
        ),
        ("precision", percent(synthetic["precision"]), "lie among real images"),
        ("recall", percent(synthetic["recall"]), "of real images are covered"),
        ("images measured", f"{synthetic['images']:,}", "against test images, to report only"),
    ]
