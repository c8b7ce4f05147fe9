from __future__ import annotations

DESCRIPTIVE: dict[str, str] = {}
SURVIVORS: dict[str, str] = {}
