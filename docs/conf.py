"""Sphinx configuration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the two modules that write pages

from findings_page import write_findings_page
from rules_page import write_rules_page

from hpcai500 import __version__

project = "hpcai500"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_mock_imports: list[str] = []

write_rules_page(Path(__file__).parent / "rules.rst")
write_findings_page(Path(__file__).parent / "findings.rst")
