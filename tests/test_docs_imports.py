"""The picture of the architecture is drawn from the imports, and the imports are what the architecture says."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from doc_blocks import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from imports_picture import PARTS, arrows_of, imported_parts, imports_picture, layers_of

IMPORTS = imported_parts()


def test_the_architecture_has_a_line_for_each_module_and_sub_package() -> None:
    text = (ROOT / "docs/architecture.rst").read_text(encoding="utf-8")
    entries = [path for path in (ROOT / "hpcai500").iterdir() if not path.name.startswith(("__", "."))]
    words = [path.stem if path.suffix == ".py" else f"{path.name}/" for path in entries if path.suffix in ("", ".py")]
    linked = {"datasets/", "rules/", "schemas/"}
    missing = [word for word in words if word not in linked and not re.search(rf"\b{re.escape(word)}", text)]
    assert missing == []


def test_the_judge_half_imports_nothing_of_the_run_half() -> None:
    for part, others in IMPORTS.items():
        if PARTS[part].half == "judge":
            assert {PARTS[other].half for other in others} <= {"judge"}, others


def test_parts_stand_above_all_that_they_import() -> None:
    layers = layers_of(IMPORTS)
    assert layers["foundation"] == 0
    for part, others in IMPORTS.items():
        assert all(layers[part] > layers[other] for other in others)


def test_what_the_arrows_leave_out_follows_from_them() -> None:
    arrows = arrows_of(IMPORTS)
    below: dict[str, set[str]] = {part: {lower for upper, lower in arrows if upper == part} for part in PARTS}
    for part in sorted(PARTS, key=layers_of(IMPORTS).__getitem__):
        below[part] |= {deeper for lower in below[part] for deeper in below[lower]}
        assert below[part] >= IMPORTS[part].keys()
    assert len(arrows) < sum(map(len, IMPORTS.values())) / 2


def test_no_two_parts_of_a_layer_overlap_in_the_picture() -> None:
    layers = layers_of(IMPORTS)
    for layer in range(max(layers.values()) + 1):
        columns = sorted(PARTS[part].column for part in PARTS if layers[part] == layer)
        assert all(right - left >= 0.9 for left, right in pairwise(columns))


def test_the_picture_is_svg_with_all_parts_and_words_for_who_cannot_see_it() -> None:
    picture = ElementTree.fromstring(imports_picture())
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= PARTS.keys()
    description = picture.find("{http://www.w3.org/2000/svg}desc")
    assert description is not None
    assert "checks imports submission" in str(description.text)


def make_package(folder: Path, **modules: str) -> Path:
    package = folder / "hpcai500"
    package.mkdir()
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    return package


def test_imports_in_functions_and_for_type_checkers_do_not_count(tmp_path: Path) -> None:
    lines = ["from hpcai500 import errors", "if TYPE_CHECKING:", "    import hpcai500.engine"]
    lines += ["def f():", "    import hpcai500.comm"]
    package = make_package(tmp_path, ledger="\n".join(lines), errors="", engine="", comm="")
    assert list(imported_parts(package)["records"]) == ["foundation"]


def test_a_circle_is_named_with_the_imports_that_make_it(tmp_path: Path) -> None:
    package = make_package(tmp_path, ledger="import hpcai500.edition", edition="from hpcai500.ledger import x")
    with pytest.raises(ValueError, match=r"import each other: .*ledger imports edition"):
        layers_of(imported_parts(package))


def test_a_module_that_nobody_placed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"module hpcai500\.stranger is in no part"):
        imported_parts(make_package(tmp_path, stranger=""))
