"""Cells of tables that people open in a spreadsheet, which takes some texts for formulas.

Names in submissions are a stranger's. A cell that begins like a formula gets an apostrophe in front, by which
spreadsheets know a text (OWASP, "CSV injection"); numbers are numbers.
"""

from __future__ import annotations

# Those of OWASP, their full-width forms, and what old spreadsheets took for the begin of a command
FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def safe_cell(value: object, shown: str | None = None) -> object:
    """A cell that no spreadsheet takes for a formula; anything but a text as it is.

    Args:
        value: of the cell.
        shown: what stands there of a text, where that is not the text itself.
    """
    if not isinstance(value, str):
        return value
    text = value if shown is None else shown
    is_formula = any(one.startswith(FORMULA_BEGINS) for one in (value, value.lstrip(), text.lstrip()))
    return f"'{text}" if is_formula else text
