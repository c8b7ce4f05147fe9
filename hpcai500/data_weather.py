"""The verbs of `hpcai500 data` for climate fields: a folder of ``climo_YYYY.h5`` files with ``statistics.json``.

Each function does what its verb says, and returns the text that the verb prints.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai500.errors import DataError, UnknownNameError, UsageError
from hpcai500.pipelines.climate_facts import CLASS_NAMES, STATISTICS_NAME

if TYPE_CHECKING:
    from hpcai500.edition import Size
    from hpcai500.pipelines.climate import ClimateFile
    from hpcai500.weather_pictures import Detections

WORKLOAD = "fasterrcnn"
MINI_SEED = 0


def is_weather(path: Path) -> bool:
    """Whether ``path`` is a folder, or an HDF5 file that has images and boxes."""
    if path.is_dir():
        return True
    import h5py

    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            return "images" in file and "format" not in file.attrs
    except OSError:
        return False  # the reader of pictures says what is wrong with it


# ---------------------------------------------------------------------------------------------------------- the options


def add_stats(verb: argparse.ArgumentParser) -> None:
    """Options of `stats`."""
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="holds climo_YYYY.h5")
    files = verb.add_mutually_exclusive_group()
    files.add_argument(
        "--workload-size",
        metavar="SIZE",
        help="take the training files of this size's rules; by default of the first size that takes data of this kind",
    )
    files.add_argument("--train-files", nargs="+", metavar="NAME", help="training files, as climo_1979.h5")


def add_repack(verb: argparse.ArgumentParser) -> None:
    """Options of `repack`."""
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="holds climo_YYYY.h5")
    verb.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="another folder")
    verb.add_argument(
        "--layout",
        choices=("contiguous", "sample-chunks", "channel-chunks"),
        help="all samples end to end (default), or one chunk a sample, or a channel (default of lz4)",
    )
    verb.add_argument(
        "--compression", choices=("none", "lz4"), default="none", help="of chunks: none (default), or bitshuffle + lz4"
    )


def add_generate(verb: argparse.ArgumentParser) -> None:
    """Options of `generate-weather`."""
    verb.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    verb.add_argument("--height", type=int, default=128, metavar="N", help="rows of a field (128)")
    verb.add_argument("--width", type=int, default=192, metavar="N", help="columns of a field (192)")
    verb.add_argument(
        "--train", type=_years, default={1979: 320}, metavar="YEAR=N", help="training samples of years (1979=320)"
    )
    verb.add_argument(
        "--validation", type=_years, default={1997: 64}, metavar="YEAR=N", help="validation samples (1997=64)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (0)")


def add_show(verb: argparse.ArgumentParser) -> None:
    """Options of `show`."""
    verb.add_argument("file", type=Path, metavar="FILE", help="a climo_YYYY.h5")
    verb.add_argument("index", type=int, metavar="INDEX", help="number of the sample in the file")
    verb.add_argument("--channel", default="TMQ", metavar="NAME", help="field to draw (TMQ)")
    verb.add_argument("--output", type=Path, metavar="PNG", help="a new file; by default climo_YYYY-INDEX-NAME.png")
    verb.add_argument(
        "--detections", type=Path, metavar="FILE", help="evaluation/detections.json of a run, to draw them too"
    )
    verb.add_argument("--min-score", type=float, default=0.5, metavar="X", help="of detections that are drawn (0.5)")


def _years(text: str) -> dict[int, int]:
    """Numbers of samples by year, from a text like 1979=320,1980=320."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {int(year): int(number) for year, number in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 1979=320,1980=320") from None


# ------------------------------------------------------------------------------------------------------------ the verbs


def stats(args: argparse.Namespace) -> str:
    """`hpcai500 data stats`."""
    from hpcai500.data_progress import DataProgress
    from hpcai500.pipelines.climate_facts import read_statistics
    from hpcai500.pipelines.climate_statistics import compute_statistics

    train_files = args.train_files or _size_for(args.folder, args.workload_size).split_files["train"]
    with DataProgress() as progress:
        compute_statistics(args.folder, train_files, num_workers=args.workers, report=progress.report)
    statistics = read_statistics(args.folder)
    lines = [f"{args.folder / STATISTICS_NAME}: over {len(statistics.train_files)} of {len(statistics.files)} files"]
    lines += [
        f"  {one.name:<7} {one.unit:<6} {one.min:>12.5g} to {one.max:<12.5g} mean {one.mean:.6g}, std {one.std:.5g}"
        for one in statistics.channels
    ]
    return "\n".join(lines)


def _size_for(folder: Path, name: str | None) -> Size:
    """The size whose rules say which files are for training."""
    from hpcai500.edition import load_edition

    workload = load_edition().workload(WORKLOAD)
    if name is not None:
        return workload.size(name)
    source = _source_of(folder)
    for size in workload.sizes.values():
        if source in size.data_sources:
            return size
    raise UsageError(f"no size of {WORKLOAD} takes data of the source {source!r}; give --train-files")


def _source_of(folder: Path) -> str:
    from hpcai500.pipelines.climate import ClimateFile
    from hpcai500.pipelines.climate_statistics import stated_provenance

    paths = sorted(folder.glob("climo_*.h5"))
    if not paths:
        raise UsageError(f"{str(folder)!r} holds no climo_YYYY.h5; give a folder that does")
    return str(stated_provenance(ClimateFile(paths[0]))["source"])


def repack(args: argparse.Namespace) -> str:
    """`hpcai500 data repack`."""
    from hpcai500.data_progress import DataProgress
    from hpcai500.pipelines.climate_repack import Storage
    from hpcai500.pipelines.climate_repack import repack as repack_folder

    default_layout = "contiguous" if args.compression == "none" else "channel-chunks"
    storage = Storage(args.layout or default_layout, args.compression)
    with DataProgress() as progress:
        result = repack_folder(args.folder, args.output, storage, num_workers=args.workers, report=progress.report)
    return f"{args.output}: {result}"


def generate(args: argparse.Namespace) -> str:
    """`hpcai500 data generate-weather`."""
    if shared := args.train.keys() & args.validation.keys():
        raise UsageError(f"year {min(shared)} is given for training and validation; give different years")
    return _generate(
        args.output, args.seed, (args.height, args.width), args.train, args.validation, num_workers=args.workers
    )


def prepare_mini(args: argparse.Namespace) -> str:
    """`hpcai500 data prepare mini-weather` and `smoke-weather`."""
    from hpcai500.edition import load_edition

    size = load_edition().workload(WORKLOAD).size(args.kind.removesuffix("-weather"))
    train, validation = (
        _spread_over(size.split_files[split], number)
        for split, number in (("train", size.num_train_samples), ("validation", size.num_validation_samples))
    )
    shape = (size.input["height"], size.input["width"])
    return _generate(args.output, MINI_SEED, shape, train, validation, num_workers=args.workers)


def _spread_over(names: tuple[str, ...], num_samples: int) -> dict[int, int]:
    """Samples of each year's file, the first ones getting one more where it does not come out even."""
    years = [int(Path(name).stem.removeprefix("climo_")) for name in names]
    return {year: num_samples // len(years) + (k < num_samples % len(years)) for k, year in enumerate(years)}


def _generate(
    folder: Path,
    seed: int,
    shape: tuple[int, int],
    train: dict[int, int],
    validation: dict[int, int],
    *,
    num_workers: int | None,
) -> str:
    from hpcai500.data_progress import DataProgress
    from hpcai500.datasets.extreme_weather import generate as weather
    from hpcai500.pipelines.climate_statistics import compute_statistics

    recipe = weather.WeatherRecipe(seed, *shape, train | validation)
    with DataProgress() as progress:
        weather.generate(folder, recipe, num_workers=num_workers, report=progress.report)
        train_files = [f"climo_{year:04d}.h5" for year in train]
        compute_statistics(folder, train_files, num_workers=num_workers, report=progress.report)
    return describe(folder)


def show(args: argparse.Namespace) -> str:
    """`hpcai500 data show`."""
    import numpy as np

    from hpcai500.pipelines.climate import CHANNELS, ClimateFile
    from hpcai500.pipelines.hdf5_writer import refuse_existing
    from hpcai500.weather_pictures import draw_sample

    channels = {channel.name: (number, channel.unit) for number, channel in enumerate(CHANNELS)}
    if args.channel not in channels:
        raise UnknownNameError("channel", args.channel, channels)
    file = ClimateFile(args.file)
    if not 0 <= args.index < file.num_samples:
        raise UsageError(f"{args.file} has no sample {args.index}; valid are 0 to {file.num_samples - 1}")
    output = args.output or Path(f"{args.file.stem}-{args.index}-{args.channel}.png")
    refuse_existing(output)
    sample = np.empty(file.shape, np.float32)
    file.read(args.index, sample)
    number, unit = channels[args.channel]
    boxes, classes = file.boxes(args.index)
    detections = None if args.detections is None else _detections_for(args, file)
    title = f"{args.file.name}, sample {args.index}"
    draw_sample(
        output,
        sample[number],
        channel=(args.channel, unit),
        boxes=boxes,
        classes=classes,
        detections=detections,
        title=title,
    )
    found = "" if detections is None else f" and {len(detections.scores)} detections"
    return f"{output}: {args.channel} of {title}, with {len(boxes)} boxes{found}"


def _detections_for(args: argparse.Namespace, file: ClimateFile) -> Detections:
    """What a run's detections.json says of the sample; it counts the samples of all validation files."""
    import numpy as np

    from hpcai500.pipelines.climate import ClimateFile
    from hpcai500.weather_pictures import Detections

    names = _size_for(file.path.parent, None).split_files["validation"]
    if file.path.name not in names:
        raise UsageError(
            f"detections are of the validation files, {', '.join(names)}; {file.path.name} is none of them"
        )
    before = names[: names.index(file.path.name)]
    wanted = args.index + sum(ClimateFile(file.path.parent / name).num_samples for name in before)
    try:
        content = json.loads(args.detections.read_text())
        found = next((one["detections"] for one in content["samples"] if one["sample"] == wanted), None)
        if found is None:
            raise DataError(f"{args.detections} has no sample {wanted}; it holds {len(content['samples'])} samples")
        kept = [one for one in found if one["score"] >= args.min_score]
        return Detections(
            np.array([one["box"] for one in kept], np.float32).reshape(-1, 4),
            np.array([CLASS_NAMES.index(one["class"]) for one in kept], np.int64),
            np.array([one["score"] for one in kept], np.float32),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{args.detections} is no detections.json of a run's evaluation folder: {error}") from None


# ------------------------------------------------------------------------------------------------------- info and check


def info(args: argparse.Namespace) -> str:
    """`hpcai500 data info` of a climate file or a folder of them."""
    return json.dumps(facts_of(args.file), indent=2) if args.json else describe(args.file)


def facts_of(path: Path) -> dict[str, Any]:
    """What a climate file, or each of a folder, holds, and what the statistics say."""
    from hpcai500.pipelines.climate import ClimateFile, read_statistics

    if not path.is_dir():
        return _file_facts(ClimateFile(path))
    paths = sorted(path.glob("climo_*.h5"))
    if not paths:
        raise UsageError(f"{str(path)!r} holds no climo_YYYY.h5; give a folder that does, or one data file")
    files = [_file_facts(ClimateFile(one)) for one in paths]
    if not (path / STATISTICS_NAME).exists():
        return {"folder": str(path), "files": files}
    statistics = read_statistics(path)
    return {
        "folder": str(path),
        "dataset_sha256": statistics.dataset_sha256,
        "provenance": statistics.provenance,
        "train_files": list(statistics.train_files),
        "files": files,
    }


def _file_facts(file: ClimateFile) -> dict[str, Any]:
    boxes = Counter(CLASS_NAMES[number] for index in range(file.num_samples) for number in file.boxes(index)[1])
    return {
        "file": str(file.path),
        "file_bytes": file.path.stat().st_size,
        "num_samples": file.num_samples,
        "shape": list(file.shape),
        "layout": file.layout,
        "box_order": file.box_order,
        "num_boxes": {name: boxes[name] for name in CLASS_NAMES},
    }


def describe(path: Path) -> str:
    """What :func:`facts_of` says, as lines."""
    facts = facts_of(path)
    lines = []
    for one in facts.get("files", [facts]):
        channels, height, width = one["shape"]
        boxes = ", ".join(f"{number:,} {name}" for name, number in one["num_boxes"].items())
        lines += [
            f"{one['file']}: {one['file_bytes']:,} bytes",
            f"  samples      {one['num_samples']:,} of {channels} x {height} x {width}, {one['layout']}",
            f"  boxes        {boxes}; columns {one['box_order']}",
        ]
    if "dataset_sha256" in facts:
        lines += [
            f"{path / STATISTICS_NAME}",
            f"  source       {', '.join(f'{key} {value}' for key, value in facts['provenance'].items())}",
            f"  trained on   {', '.join(facts['train_files'])}",
            f"  digest       {facts['dataset_sha256']}",
        ]
    elif "folder" in facts:
        lines.append(f"there are no statistics; write them with `hpcai500 data stats {path}`")
    return "\n".join(lines)
