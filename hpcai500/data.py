"""Prepare, generate, inspect and check data files.

A data file holds all pictures of a benchmark in one HDF5 file (hpcai500/pipelines/hdf5.py says how); climate fields are
a folder of files (hpcai500/pipelines/climate.py). Preparing uses all cores, streams, and resumes when the same command
is run again after a kill; nothing that exists is overwritten.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai500 import data_weather
from hpcai500.command import INTERRUPTED_EXIT_CODE

if TYPE_CHECKING:
    from hpcai500.pipelines.hdf5 import ImageFileInfo

EPILOG = """examples:
  hpcai500 data prepare mini --output data/mini.h5
  hpcai500 data prepare imagenet --source /datasets/ILSVRC2012 --output imagenet.h5
  hpcai500 data generate --classes 10 --image-size 64 --seed 0 --output generated.h5
  hpcai500 data info data/mini.h5
  hpcai500 data check --decode data/mini.h5
  hpcai500 data prepare mini-weather --output data/mini-weather
  hpcai500 data stats /datasets/extreme_weather
  hpcai500 data repack /datasets/extreme_weather --output /scratch/extreme_weather
  hpcai500 data show data/mini-weather/climo_1997.h5 0 --channel TMQ

exit status: 0 good, 1 `check` found something, 2 cannot be done or read, 130 interrupted"""

MAX_PRINTED_FINDINGS = 20
MAX_PRINTED_CLASSES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_prepare(verbs)
    generate = _add_verb(
        verbs,
        "generate",
        "generate pictures that a network can learn to tell apart",
        "hpcai500 data generate --classes 10 --train 60000 --validation 10000 --seed 0 --output generated.h5",
    )
    generate.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes (10)")
    generate.add_argument("--train", type=int, default=60_000, metavar="N", help="training pictures (60000)")
    generate.add_argument("--validation", type=int, default=10_000, metavar="N", help="validation pictures (10000)")
    generate.add_argument("--image-size", type=int, default=64, metavar="N", help="height and width in pixels (64)")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (0)")
    _add_output(generate)
    _add_weather(verbs)
    info = _add_verb(verbs, "info", "say what a data file holds", "hpcai500 data info data/mini.h5")
    info.add_argument("file", type=Path, metavar="FILE", help="or a folder of climate files")
    info.add_argument("--json", action="store_true", help="print JSON")
    check = _add_verb(
        verbs, "check", "read a data file to the last byte and name what is wrong", "hpcai500 data check data/mini.h5"
    )
    check.add_argument("file", type=Path, metavar="FILE", help="or a folder of climate files")
    check.add_argument("--decode", action="store_true", help="decode every picture too")
    check.add_argument("--json", action="store_true", help="print JSON")
    _add_workers(check)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says; returns the exit status."""
    verbs = {"prepare": _prepare, "generate": _generate, "info": _info, "check": _check}
    weather_verbs = {
        "generate-weather": data_weather.generate,
        "stats": data_weather.stats,
        "repack": data_weather.repack,
        "show": data_weather.show,
    }
    try:
        if args.verb in weather_verbs:
            print(weather_verbs[args.verb](args))
            return 0
        return verbs[args.verb](args)
    except KeyboardInterrupt:
        resumes = args.verb in ("prepare", "generate", "generate-weather", "repack")
        hint = "; what is done is kept, and the same command goes on from there" if resumes else ""
        print(f"hpcai500 data: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE


# ---------------------------------------------------------------------------------------------------------- the options


def _add_prepare(verbs: Any) -> None:
    prepare = _add_verb(
        verbs,
        "prepare",
        "pack pictures into a data file",
        "hpcai500 data prepare imagenet --source /datasets/ILSVRC2012 --output imagenet.h5",
    )
    kinds = prepare.add_subparsers(dest="kind", metavar="KIND", required=True)
    imagenet = _add_verb(
        kinds,
        "imagenet",
        "ILSVRC2012 as published",
        "hpcai500 data prepare imagenet --source /datasets/ILSVRC2012 --output imagenet.h5",
    )
    imagenet.add_argument("--source", type=Path, required=True, metavar="FOLDER", help="holds train/ and val/")
    imagenet.add_argument(
        "--validation-labels",
        type=Path,
        metavar="FILE",
        help="classes of flat validation pictures: ILSVRC2012_validation_ground_truth.txt, LOC_val_solution.csv, or "
        "lines of `picture wnid`; looked for below --source by default",
    )
    imagenet.add_argument(
        "--synsets",
        type=Path,
        metavar="FILE",
        help="meta.mat or map_clsloc.txt of the development kit, for its numbers",
    )
    fashion = _add_verb(
        kinds,
        "fashion-mnist",
        "Fashion-MNIST, enlarged; found installed or fetched where no --source is given",
        "hpcai500 data prepare fashion-mnist --output fashion-mnist.h5",
    )
    fashion.add_argument("--source", type=Path, metavar="FOLDER", help="holds the four idx files")
    fashion.add_argument("--image-size", type=int, default=64, metavar="N", help="height and width in pixels (64)")
    folder = _add_verb(
        kinds,
        "folder",
        "any folder of class folders with JPEG or PNG pictures",
        "hpcai500 data prepare folder --source flowers/ --validation-share 0.2 --output flowers.h5",
    )
    folder.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="holds class folders, or train/ and val/ with those",
    )
    folder.add_argument(
        "--validation-share", type=float, default=0.1, metavar="X", help="of each class, where there is no val/ (0.1)"
    )
    folder.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the validation pictures (0)")
    mini = _add_verb(
        kinds,
        "mini",
        "the data of the mini size: Fashion-MNIST, or generated where that cannot be had",
        "hpcai500 data prepare mini --output data/mini.h5",
    )
    mini.add_argument("--source", type=Path, metavar="FOLDER", help="holds Fashion-MNIST's four idx files")
    for kind in (imagenet, fashion, folder, mini):
        _add_output(kind)
    for size in ("mini", "smoke"):
        weather = _add_verb(
            kinds,
            f"{size}-weather",
            f"the generated climate fields of the {size} size",
            f"hpcai500 data prepare {size}-weather --output data/{size}-weather",
        )
        weather.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
        _add_workers(weather)


def _add_weather(verbs: Any) -> None:
    """The verbs for climate fields."""
    generate = _add_verb(
        verbs,
        "generate-weather",
        "generate climate fields with storms and their boxes",
        "hpcai500 data generate-weather --height 128 --width 192 --seed 0 --output data/weather",
    )
    data_weather.add_generate(generate)
    stats = _add_verb(
        verbs,
        "stats",
        "write the statistics of a folder of climate files, which a run needs",
        "hpcai500 data stats /datasets/extreme_weather",
    )
    data_weather.add_stats(stats)
    repack = _add_verb(
        verbs,
        "repack",
        "store climate files anew, so that they are read faster",
        "hpcai500 data repack /datasets/extreme_weather --output /scratch/extreme_weather --layout contiguous",
    )
    data_weather.add_repack(repack)
    for verb in (generate, stats, repack):
        _add_workers(verb)
    show = _add_verb(
        verbs,
        "show",
        "draw a climate field with its boxes",
        "hpcai500 data show data/mini-weather/climo_1997.h5 0 --channel TMQ --output tmq.png",
    )
    data_weather.add_show(show)


def _add_verb(verbs: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a new file, by custom NAME.h5")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (as many as there are cores)")


# ------------------------------------------------------------------------------------------------------------ the verbs


def _prepare(args: argparse.Namespace) -> int:
    if args.kind.endswith("-weather"):
        print(data_weather.prepare_mini(args))
        return 0
    from hpcai500.data_progress import DataProgress

    with DataProgress() as progress:
        settings = {"num_workers": args.workers, "report": progress.report}
        if args.kind == "imagenet":
            from hpcai500.datasets.imagenet import prepare as imagenet

            imagenet.prepare(
                args.output, args.source, labels_file=args.validation_labels, synsets_file=args.synsets, **settings
            )
        elif args.kind == "folder":
            from hpcai500.datasets import folder

            folder.prepare(args.output, args.source, validation_share=args.validation_share, seed=args.seed, **settings)
        elif args.kind == "fashion-mnist":
            from hpcai500.datasets.fashion_mnist import prepare as fashion_mnist

            found = fashion_mnist.find_or_fail(args.source)
            fashion_mnist.prepare(args.output, found, size=args.image_size, **settings)
        else:
            from hpcai500.datasets.fashion_mnist import prepare as fashion_mnist

            fashion_mnist.prepare_mini(args.output, source=args.source, **settings)
    return _print_result(args.output)


def _generate(args: argparse.Namespace) -> int:
    from hpcai500.data_progress import DataProgress
    from hpcai500.datasets import generated

    recipe = generated.Recipe(args.seed, args.classes, args.image_size, (args.train, args.validation))
    with DataProgress() as progress:
        generated.prepare(args.output, recipe, num_workers=args.workers, report=progress.report)
    return _print_result(args.output)


def _print_result(path: Path) -> int:
    from hpcai500.pipelines.hdf5 import open_images

    print(_describe(open_images(path)))
    return 0


def _info(args: argparse.Namespace) -> int:
    if data_weather.is_weather(args.file):
        print(data_weather.info(args))
        return 0
    from hpcai500.pipelines.hdf5 import open_images

    info = open_images(args.file)
    if args.json:
        print(json.dumps(_as_dictionary(info), indent=2))
    else:
        print(_describe(info))
    return 0


def _check(args: argparse.Namespace) -> int:
    from hpcai500.data_progress import DataProgress
    from hpcai500.pipelines.climate_check import check_climate
    from hpcai500.pipelines.hdf5_check import check_images

    with DataProgress() as progress:
        settings = {"num_workers": args.workers, "report": progress.report}
        if data_weather.is_weather(args.file):
            findings = check_climate(args.file, **settings)
        else:
            findings = check_images(args.file, decode=args.decode, **settings)
    if args.json:
        entries = [{"split": one.split, "index": one.index, "name": one.name, "what": one.what} for one in findings]
        print(json.dumps({"file": str(args.file), "decoded": args.decode, "findings": entries}, indent=2))
    else:
        for finding in findings[:MAX_PRINTED_FINDINGS]:
            print(finding)
        if len(findings) > MAX_PRINTED_FINDINGS:
            print(f"... and {len(findings) - MAX_PRINTED_FINDINGS} more; --json prints all")
        print(f"{args.file}: {len(findings)} findings; prepare or copy it again" if findings else f"{args.file}: good")
    return 1 if findings else 0


def _as_dictionary(info: ImageFileInfo) -> dict[str, Any]:
    return {
        "file": str(info.path),
        "file_bytes": info.path.stat().st_size,
        "dataset_sha256": info.dataset_sha256,
        "provenance": info.provenance,
        "num_classes": len(info.class_names),
        "class_names": list(info.class_names),
        "splits": {
            split: {
                "num_samples": table.num_samples,
                "num_bytes": table.num_bytes,
                "min_height_width": table.sizes.min(axis=0).tolist(),
                "median_height_width": [int(side) for side in _median(table.sizes)],
                "max_height_width": table.sizes.max(axis=0).tolist(),
            }
            for split, table in info.splits.items()
        },
    }


def _median(sizes: Any) -> Any:
    import numpy as np

    return np.median(sizes, axis=0)


def _describe(info: ImageFileInfo) -> str:
    facts = _as_dictionary(info)
    names = ", ".join(info.class_names[:MAX_PRINTED_CLASSES])
    rest = len(info.class_names) - MAX_PRINTED_CLASSES
    lines = [
        f"{info.path}: {facts['file_bytes']:,} bytes",
        f"  source       {info.provenance.get('source')}: {info.provenance.get('description')}",
        f"  origin       {info.provenance.get('origin')}; made by {info.provenance.get('created_by')}",
        f"  classes      {len(info.class_names)}: {names}{f' and {rest} more' if rest > 0 else ''}",
    ]
    for split, table in facts["splits"].items():
        smallest, median, largest = (
            "{} x {}".format(*table[f"{which}_height_width"]) for which in ("min", "median", "max")
        )
        lines.append(
            f"  {split:<12} {table['num_samples']:,} pictures, {table['num_bytes']:,} bytes, "
            f"height x width {smallest} to {largest}, median {median}"
        )
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in info.provenance.get("formats", {}).items())
    return "\n".join([*lines, f"  stored as    {kinds}", f"  digest       {info.dataset_sha256}"])
