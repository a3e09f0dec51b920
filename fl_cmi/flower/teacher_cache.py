"""Clients that were trained before: what they answered in round 1, kept on disk under all that determines it."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fl_cmi.compose import Config, bad_clients
from fl_cmi.data.dataset import Dataset
from fl_cmi.files import locked, whole
from fl_cmi.flower.client import CONFIG
from fl_cmi.flower.records import ARRAYS, METRICS, from_record, partition_id, to_record
from fl_cmi.partition import Partition
from fl_cmi.report.summary import digest
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError

__all__ = ["TeacherCache"]

log = logging.getLogger(__name__)

Ask = Callable[[list[Message]], list[Message]]
"""Sends messages to clients and returns their replies."""

PACKAGE = Path(__file__).resolve().parents[1]
CODE = (
    "flower/client.py",
    "flower/records.py",
    "flower/arrays.py",
    "federated/method.py",
    "federated/moments.py",
    "federated/sharing.py",
    "sides.py",
    "compose.py",
    "training.py",
    "session.py",
    "losses.py",
    "moments.py",
    "batchnorm.py",
    "precision.py",
    "augment.py",
    "rng.py",
    "types.py",
    "models",
    "attacks",
)
"""What a client runs: a change of it is another teacher."""


class TeacherCache:
    """Answers the train messages of round 1 as the clients did before; asks those of whom nothing is known.

        key = sha256(code, torch, processor, seed, threads, training, method, architecture, images, client, message)

    Right for clients whose answer is a function of these alone: those that train plainly, from the server's model or
    from scratch, and keep nothing for later rounds. Others are asked as if there were no cache. Two runs that want the
    same clients at once do not train them twice: the second waits for the first.

    Args:
        folder: Of the cache, made where missing; runs may share it.
        config: Of the run.
        partition: Which images are whose.
        data: Whose training images they are.
        side: What the server knows of the run.

    Attributes:
        status: For the report: `hit` where no client of round 1 had to be asked, `stored`, `bypassed, because ...`, or
            `unused` before round 1.
    """

    def __init__(
        self, folder: str, config: Config, partition: Partition, data: Dataset, side: ServerSide
    ) -> None:
        if not isinstance(folder, str) or not folder:
            raise ConfigError("teacher_cache", folder, "a folder, or null for none")
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ConfigError("teacher_cache", folder, f"a folder to write to ({error.strerror})") from None
        self.config, self.partition, self.data, self.side = config, partition, data, side
        _, self.bad = bad_clients(config)
        self.start = config["local"].get("start", "broadcast")
        reason = self.reason_against()
        self.bypassed = reason is not None
        self.status = "unused" if reason is None else f"bypassed, because {reason}"

    def reason_against(self) -> str | None:
        """Why the clients of this run are none to remember."""
        sharing, model = self.side.sharing, self.side.student()
        if not sharing.method.trains_plainly:
            return "clients do more than plain training"
        if self.start == "own":
            return "clients keep their own models"
        if sharing.private(model) or sharing.kept(model):
            return "clients keep a part of their models"
        return None

    def __call__(self, messages: Mapping[int, Message], ask: Ask) -> list[Message]:
        """Replies to messages by client; those of unknown clients are good or not, as they came."""
        if self.bypassed or not all(plain_first(message) for message in messages.values()):
            return ask(list(messages.values()))
        keys = {client: self.key(client, message) for client, message in messages.items()}
        with alone(self.folder / f"{of_text('+'.join(sorted(keys.values())))}.lock"):
            known = {client: self.read(keys[client], message) for client, message in messages.items()}
            replies = [reply for reply in known.values() if reply is not None]
            unknown = [messages[client] for client, reply in known.items() if reply is None]
            self.status = "stored" if unknown else "hit"
            for reply in ask(unknown) if unknown else []:
                if not reply.has_error():
                    try:
                        self.write(keys[partition_id(reply.content)], reply)
                    except OSError as error:
                        log.warning("teacher_cache: a client is not kept (%s)", error.strerror)
                replies.append(reply)
        return replies

    def key(self, client: int, message: Message) -> str:
        """Sha256 (hex) of all that determines the client's answer."""
        config, side = self.config, self.side
        images = self.data.train.subset(torch.tensor(self.partition.indices[client]))
        noise = self.partition.noise_sd
        nodes = config["teachers"]["architectures"]
        about: dict[str, Any] = {
            "code": code_digest(CODE),
            "torch": torch.__version__,
            "processor": processor(side.device),
            "seed": config["seed"],
            "threads": config["client_threads"],
            "label counts": config["share_label_counts"],
            "local": config["local"],
            "method": config["strategy"].get("client"),
            "architecture": nodes[client % len(nodes)],
            "task": repr(side.task),
            "images": digest({"x": images.x, "y": images.y}),
            "noise": None if noise is None else noise[client],
            "client": client,
            "settings": dict(message.content.config_records[CONFIG]),
        }
        if client in self.bad:  # those who collude know of each other's images
            about["attack"] = [config["attacks"], self.bad, self.partition.hash, noise]
        if self.start == "broadcast":
            about["model"] = digest(from_record(message.content.array_records[ARRAYS]))
        return of_text(json.dumps(about, sort_keys=True, default=repr))

    def read(self, key: str, message: Message) -> Message | None:
        """The reply that was kept, now to this message; None where there is none or the file is damaged."""
        try:
            with safe_open(self.path(key), "pt") as file:
                metadata = file.metadata()
                about = json.loads(metadata["about"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                records = {
                    record: {name: state[f"{record}/{name}"] for name in names}
                    for record, names in about["records"].items()
                }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            return None
        if metadata.get("seal") != of_text(metadata["about"] + digest(state)):
            return None
        content = RecordDict({METRICS: MetricRecord(about["metrics"])})
        for record, own in records.items():
            content[record] = to_record(own)
        return Message(content, reply_to=message)

    def write(self, key: str, reply: Message) -> None:
        """Keep a reply; a reader sees all of it or nothing."""
        records = {name: from_record(record) for name, record in reply.content.array_records.items()}
        state = {f"{record}/{name}": value for record, own in records.items() for name, value in own.items()}
        # The order of names is a part of the answer, and a safetensors file has its own.
        names = {record: list(own) for record, own in records.items()}
        about = json.dumps({"records": names, "metrics": dict(reply.content.metric_records[METRICS])})
        with whole(self.path(key)) as draft:
            save_file(state, draft, {"about": about, "seal": of_text(about + digest(state))})

    def path(self, key: str) -> Path:
        """Where a reply is kept."""
        return self.folder / f"{key}.safetensors"


def plain_first(message: Message) -> bool:
    """Whether this asks for training in round 1, with nothing beside the model and the settings."""
    if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return False
    content = message.content
    return set(content) == {ARRAYS, CONFIG} and content.config_records[CONFIG].get("server-round") == 1


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside is one process at a time; a process that dies makes room."""
    with path.open("w") as file:
        locked(file, wait=True)
        yield


def processor(device: torch.device) -> str:
    """What computes: the last bits depend on it."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return f"{device.type} {name}"


def code_digest(parts: Sequence[str]) -> str:
    """Sha256 (hex) of the source in these files and folders of the package."""
    sha = hashlib.sha256()
    for name in parts:
        top = PACKAGE / name
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            sha.update(path.read_bytes())
    return sha.hexdigest()


def of_text(text: str) -> str:
    """Sha256 (hex)."""
    return hashlib.sha256(text.encode()).hexdigest()
