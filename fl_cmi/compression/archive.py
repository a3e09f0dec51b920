"""Exported graphs as files that can be looked at before they are loaded: no pickle, no code, no path of any machine.

`torch.export.load` would unpickle example inputs, weights of odd classes and custom objects, and hand some of the texts
in the graph to Python: the sizes to `eval`, the names to `exec`. Nothing that it writes for a network of ours needs any
of that, so a file with more than plain names, numbers and ATen's operators is refused.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

__all__ = ["checked", "pack", "unpack"]

GRAPH = "models/model.json"
TENSORS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+", re.ASCII),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+", re.ASCII),
}
"""Which tensors there are, and what their files are called."""

EXAMPLES = "data/sample_inputs/model.pt"

ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt",
    re.ASCII,
)
"""Files of an archive, below its one folder."""

NAME = re.compile(r"[\w.]*", re.ASCII)
SPECIAL = {
    "target": re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.(?!from_file|save)\w+\.\w+", re.ASCII),
    "expr_str": re.compile(
        r"((Symbol|Integer|Mul|Add|Max|Min)\(|'s\d+'|-?\d+|(positive|integer|nonnegative)=True|[), ])*",
        re.ASCII,
    ),
    "in_spec": (
        SPEC := re.compile(
            r'([\[\]{}:, 1]|"(type|context|children_spec|null|\[\])"|null|"builtins\.(tuple|list|dict)")*'
        )
    ),
    "out_spec": SPEC,
    "torch_version": re.compile(r"[\w.+]*", re.ASCII),
}
"""Keys of the graph whose texts are more than a name."""

EMPTY = ("guards_code", "custom_obj_values", "treespec_namedtuple_fields")


def unpack(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of an archive by name, without its folder; of the graph, not where in the source it came from.

    Raises:
        ValueError: There are others than such an archive has, or one of them twice.
    """
    files: dict[str, bytes] = {}
    for entry in archive.infolist():
        root, _, name = entry.filename.partition("/")
        if root != "archive" or name in files or not ENTRY.fullmatch(name):
            raise ValueError(f"it holds {entry.filename!r}, which no int8 graph has")
        files[name] = archive.read(entry)
    if GRAPH not in files:
        raise ValueError("it holds no graph")
    files[GRAPH] = json.dumps(without_metadata(json.loads(files[GRAPH]))).encode()
    return files


def pack(files: Mapping[str, bytes], target: Any, method: int = zipfile.ZIP_DEFLATED) -> None:
    """Write the files of an archive to a path or a buffer."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(f"archive/{name}", data)


def checked(files: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of the files for `torch.export.load`, made anew, so that what is read is what was looked at.

    Raises:
        ValueError: Loading them would execute something.
    """
    if files.get(EXAMPLES):
        raise ValueError("it holds pickled example inputs")
    for config, name in TENSORS.items():
        for entry in json.loads(files[config])["config"].values():
            if entry["use_pickle"] is not False or not name.fullmatch(entry["path_name"]):
                raise ValueError(f"it holds a pickle, {str(entry['path_name'])!r}")
    check_plain(json.loads(files[GRAPH]), "")
    raw = io.BytesIO()
    pack({**files, EXAMPLES: b""}, raw, zipfile.ZIP_STORED)
    raw.seek(0)
    return raw


def without_metadata(value: Any) -> Any:
    """A graph without stack traces and the like, which name files of the machine and play no part."""
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else without_metadata(part) for key, part in value.items()}
    return [without_metadata(part) for part in value] if isinstance(value, list) else value


def check_plain(value: Any, key: str) -> None:
    """Raise ValueError for a text in the graph that is more than a name, or in its place more than it may be."""
    if key in EMPTY and value:
        raise ValueError(f"its graph has {key}")
    if isinstance(value, dict):
        for name, part in value.items():
            check_plain(name, "")
            check_plain(part, name)
    elif isinstance(value, list):
        for part in value:
            check_plain(part, key)
    elif isinstance(value, str) and not SPECIAL.get(key, NAME).fullmatch(value):
        raise ValueError(f"its graph has {value[:80]!r}{f' as {key}' if key else ''}")
