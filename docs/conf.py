"""Sphinx configuration. Pages that tell what the code does are written from the code before the build."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that write pages

from commands_page import write_commands_page
from findings_page import write_findings_page
from imports_picture import write_imports_picture
from rules_page import write_rules_page

from hpcai500 import __version__

project = "hpcai500"
release = __version__
copyright = "hpcai500 developers; Apache 2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
napoleon_use_ivar = True  # attributes as a list, so that those of named tuples are not described twice
highlight_language = "none"  # blocks name their language; those that do not are what programs print

html_theme = "furo"
html_title = f"hpcai500 {release}"
html_static_path = ["_static"]
html_css_files = ["hpcai500.css"]

autodoc_mock_imports = ["horovod", "nvidia", "mpi4py"]  # the pages are built where there is neither GPU nor MPI
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

DOCS = Path(__file__).parent
write_commands_page(DOCS / "commands.rst")
write_findings_page(DOCS / "findings.rst")
write_imports_picture(DOCS / "pictures/imports.svg")
write_rules_page(DOCS / "rules.rst")


def readable_signature(_app, _what, _name, _obj, _options, signature, returns):  # type: ignore[no-untyped-def]
    """Defaults that are made anew for each object have no form that Sphinx could parse; they become three dots."""
    return (signature.replace("<factory>", "...") if signature else signature), returns


ATTRIBUTES = {
    'role="heading">': 'role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def make_accessible(app, exception):  # type: ignore[no-untyped-def]
    """What Sphinx leaves out for screen readers and keyboards: the level of captions, the focus of what scrolls."""
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).glob("*.html"):
            text = page.read_text(encoding="utf-8")
            for without, attributed in ATTRIBUTES.items():
                text = text.replace(without, attributed)
            page.write_text(text, encoding="utf-8")


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("build-finished", make_accessible)
