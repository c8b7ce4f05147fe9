"""JSON Schemas (2020-12) of all records, for programs that read them without this package.

They are made from the types that this package reads and writes with, so there is no second description to keep in step:
``python -m hpcai500.schemas`` writes them, ``1/*.json`` beside this file are shipped, ``hpcai500 export --schemas
DIRECTORY`` copies them. The folder's name is the number that the records carry as ``format``; a format that has been
released keeps its folder. Within a format fields may be added that may be left out, and nothing else changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hpcai500.equivalence.proof import Proof
from hpcai500.errors import RecordError
from hpcai500.events import EVENTS
from hpcai500.formats import RunConfig, RunResult, SignedTicket, Submission, System, json_schema
from hpcai500.ledger import Line
from hpcai500.micro_record import MicroRecord
from hpcai500.verdict import Unreadable, VerdictForm

FORMAT = 1
SHIPPED = Path(__file__).parent / str(FORMAT)
DIALECT = "https://json-schema.org/draft/2020-12/schema"
REF_TEMPLATE = "#/$defs/{name}"
RECORDS: dict[str, type[msgspec.Struct]] = {
    "config": RunConfig,
    "equivalence": Proof,
    "micro": MicroRecord,
    "result": RunResult,
    "submission": Submission,
    "system": System,
    "ticket": SignedTicket,
}


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of every record, of a line of a ledger, and of what `hpcai500-verify --json` prints, by name."""
    bodies = {name: json_schema(form) for name, form in RECORDS.items()}
    bodies |= {"ledger": _ledger_schema(), "verdict": _verdict_schema()}
    heads = {name: {"$schema": DIALECT, "$id": f"urn:hpcai500:format-{FORMAT}:{name}"} for name in bodies}
    return {name: heads[name] | bodies[name] for name in sorted(bodies)}


def _ledger_schema() -> dict[str, Any]:
    """One line of a ledger: for each event a line whose value is what the event carries."""
    references, parts = msgspec.json.schema_components([Line, *EVENTS.values()], ref_template=REF_TEMPLATE)
    line = parts.pop("Line")
    lines = []
    for event, reference in zip(EVENTS, references[1:], strict=True):
        properties = line["properties"] | {"event": {"const": event}, "value": reference}
        lines.append({**line, "title": event, "description": f"A line with {event}.", "properties": properties})
    return {"title": "Line of a ledger", "oneOf": lines, "$defs": parts}


def _verdict_schema() -> dict[str, Any]:
    """The verdict, or why there is none."""
    references, parts = msgspec.json.schema_components([VerdictForm, Unreadable], ref_template=REF_TEMPLATE)
    return {"title": "Verdict", "oneOf": list(references), "$defs": parts}


def write_schemas(folder: Path) -> list[Path]:
    """Write one file for each record into a folder, which is made; existing files are replaced.

    Raises:
        RecordError: the folder cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas().items():
            path = folder / f"{name}.json"
            path.write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n")
            written.append(path)
    except OSError as error:
        raise RecordError(
            f"cannot write schemas into {str(folder)!r} ({error.strerror}); name a folder that can be written"
        ) from None
    return written
