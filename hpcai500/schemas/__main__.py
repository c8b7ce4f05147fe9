"""Writes the shipped JSON Schemas anew, after a type of a record has changed: ``python -m hpcai500.schemas``."""

from __future__ import annotations

from hpcai500.schemas import SHIPPED, write_schemas

if __name__ == "__main__":
    write_schemas(SHIPPED)
