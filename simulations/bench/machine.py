"""The machine in a line: figures mean nothing without it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["machine", "processor"]


def processor() -> str:
    """What the machine calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    for entry in lines:
        if entry.startswith("model name"):
            return entry.partition(":")[2].strip()
    return platform.processor()


def machine() -> str:
    """Processor, cores, threads, GPU if there is one, and versions of what the figures depend on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "flwr"))
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s){gpu}; {versions}"
