"""Between Flower's records and trees that a checkpoint holds."""

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fl_cmi.checkpoint.tree import Tree
from fl_cmi.flower.records import from_record, to_record

__all__ = ["records_of", "recalled", "reply_tree", "tree_of"]

KINDS = {"metrics": MetricRecord, "settings": ConfigRecord}


def tree_of(records: RecordDict) -> Tree:
    """Records by name, in their order."""
    return {name: packed(record) for name, record in records.items()}


def packed(record: ArrayRecord | MetricRecord | ConfigRecord) -> Tree:
    """A record's kind and what is in it."""
    if isinstance(record, ArrayRecord):
        return ["arrays", from_record(record)]
    kind = next(name for name, known in KINDS.items() if isinstance(record, known))
    return [kind, dict(record.items())]


def records_of(tree: Tree) -> RecordDict:
    """The records again."""
    return RecordDict(
        {
            name: to_record(value) if kind == "arrays" else KINDS[kind](value)
            for name, (kind, value) in tree.items()
        }
    )


def reply_tree(reply: Message) -> Tree:
    """A reply, good or not."""
    if reply.has_error():
        return {"error": [reply.error.code, reply.error.reason or ""]}
    return {"content": tree_of(reply.content)}


def recalled(tree: Tree, message: Message) -> Message:
    """The same reply, now to this message."""
    if "error" in tree:
        code, reason = tree["error"]
        return Message(Error(code, reason), reply_to=message)
    return Message(records_of(tree["content"]), reply_to=message)
