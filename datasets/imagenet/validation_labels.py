"""Reads which class each of ImageNet's flat validation pictures has, from whichever file people have.

- ``ILSVRC2012_validation_ground_truth.txt`` of the development kit: a number a line, in the order of the pictures. What
  the numbers mean stands in the kit's ``meta.mat`` beside it, or in ``map_clsloc.txt``.
- ``LOC_val_solution.csv`` (Kaggle): ``ILSVRC2012_val_00000001,n01751748 111 108 302 226``
- two columns, ``ILSVRC2012_val_00000001.JPEG n01751748``, with a blank or a comma between them
- one WordNet id a line, in the order of the pictures
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePath

from hpcai500.errors import DataError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KNOWN_NAMES = (
    "LOC_val_solution.csv", GROUND_TRUTH, "imagenet_2012_validation_synset_labels.txt", "val.txt", "val_labels.txt",
)  # fmt: skip
KNOWN_FOLDERS = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "ILSVRC/devkit/data")
SYNSET_NAMES = ("meta.mat", "map_clsloc.txt", "synsets.txt")
WORDNET_ID = re.compile(r"n\d{8}")


def find(source: Path) -> Path:
    """The file of validation labels below ``source``; raises DataError if there is none."""
    for folder in KNOWN_FOLDERS:
        for name in KNOWN_NAMES:
            if (source / folder / name).is_file():
                return source / folder / name
    raise DataError(
        f"folder {str(source)!r} has flat validation pictures and no file with their classes "
        f"({', '.join(KNOWN_NAMES)}); give one with --validation-labels"
    )


def read(path: Path, file_names: Sequence[str], synsets_file: Path | None = None) -> list[str]:
    """The WordNet id of each of ``file_names``, which are sorted.

    Raises:
        DataError: the file cannot be read, a line makes no sense, a picture has no label or a label no picture.
    """
    rows = [(number, re.split(r"[,;\s]+", line.strip())) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not rows:
        raise DataError(f"file of validation labels {str(path)!r} is empty")
    if len(rows[0][1]) >= 2:
        return _by_name(path, rows, file_names)
    if len(rows) != len(file_names):
        raise DataError(
            f"file of validation labels {str(path)!r} has {len(rows)} lines for {len(file_names)} pictures; "
            "expected one each, in the pictures' order"
        )
    if WORDNET_ID.fullmatch(rows[0][1][0]):
        return [_wordnet_id(path, number, row[0]) for number, row in rows]
    synsets_file = synsets_file or _find_synsets(path)
    synsets = read_synsets(synsets_file)
    ids = []
    for number, row in rows:
        if not row[0].isdigit() or int(row[0]) not in synsets:
            raise DataError(
                f"line {number} of {str(path)!r} is {row[0]!r}; expected a number that {str(synsets_file)!r} explains"
            )
        ids.append(synsets[int(row[0])])
    return ids


def _by_name(path: Path, rows: list[tuple[int, list[str]]], file_names: Sequence[str]) -> list[str]:
    if not WORDNET_ID.fullmatch(rows[0][1][1]):
        rows = rows[1:]  # a header
    id_of = {PurePath(row[0]).stem: _wordnet_id(path, number, row[1] if len(row) > 1 else "") for number, row in rows}
    stems = [PurePath(name).stem for name in file_names]
    unlabelled = [name for name, stem in zip(file_names, stems, strict=True) if stem not in id_of]
    if unlabelled:
        raise DataError(
            f"validation picture {unlabelled[0]!r} has no label in {str(path)!r} ({len(unlabelled)} such pictures)"
        )
    missing = sorted(set(id_of) - set(stems))
    if missing:
        raise DataError(f"validation picture {missing[0]!r} of {str(path)!r} is missing ({len(missing)} such pictures)")
    return [id_of[stem] for stem in stems]


def _wordnet_id(path: Path, number: int, text: str) -> str:
    if not WORDNET_ID.fullmatch(text):
        raise DataError(f"line {number} of {str(path)!r} has {text!r} where a WordNet id like n01440764 is expected")
    return text


def _find_synsets(labels_file: Path) -> Path:
    for name in SYNSET_NAMES:
        if (labels_file.parent / name).is_file():
            return labels_file.parent / name
    raise DataError(
        f"the numbers of {str(labels_file)!r} need the development kit's meta.mat (or map_clsloc.txt) beside it; "
        "copy it there or give it with --synsets"
    )


def read_synsets(path: Path) -> dict[int, str]:
    """The WordNet id that each number of the development kit means, from meta.mat or a text file.

    A line of text holds a WordNet id and, where it has one, its number; without numbers the lines count from 1.
    """
    if path.suffix == ".mat":
        return dict(enumerate(_wordnet_ids_of_mat(path), 1))
    synsets = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        wordnet_id = next((word for word in words if WORDNET_ID.fullmatch(word)), None)
        if wordnet_id is None:
            raise DataError(f"line {number} of {str(path)!r} has no WordNet id like n01440764")
        digits = [word for word in words[:2] if word.isdigit()]
        synsets[int(digits[0]) if digits else number] = wordnet_id
    return synsets


def _wordnet_ids_of_mat(path: Path) -> list[str]:
    """The WordNet ids of meta.mat in the order of their numbers.

    meta.mat holds one structure array, ordered by ILSVRC2012_ID from 1, with a WordNet id in each element and nowhere
    else (torchvision.datasets.imagenet.parse_devkit_archive reads it with scipy). A version 5 MAT-file is a header of
    128 bytes and elements of type, size and data, type 15 being compressed with zlib ("MAT-File Format", The MathWorks,
    chapter 1); text has 1 or 2 bytes a letter.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    found: list[str] = []
    place = 128
    while place + 8 <= len(data):
        kind, size = (int.from_bytes(data[place + start : place + start + 4], "little") for start in (0, 4))
        element = data[place + 8 : place + 8 + size]
        try:
            element = zlib.decompress(element) if kind == 15 else element
        except zlib.error as error:
            raise DataError(f"{str(path)!r} is damaged; take it from the development kit again") from error
        found += [match.replace(b"\0", b"").decode("ascii") for match in re.findall(rb"n\0?(?:\d\0?){8}", element)]
        place += 8 + size
    if not found or len(set(found)) != len(found):
        raise DataError(f"{str(path)!r} does not hold each WordNet id once; take meta.mat from the development kit")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as text") from error
