"""What identifies the climate data of a run: the files it uses, whatever else lies in their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpcai500.pipelines.climate_facts import describe_folder, used_digest
from hpcai500.pipelines.climate_pipeline import ClimatePipelineConfig, open_climate_pipeline
from hpcai500.pipelines.climate_statistics import compute_statistics

SPLITS = {"train": ["climo_1979.h5"], "validation": ["climo_1997.h5"]}


def test_years_that_no_run_reads_change_nothing(smoke_weather: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smoke_weather, tmp_path / "weather"))
    before = describe_folder(folder, SPLITS).dataset_sha256
    shutil.copy(folder / "climo_1997.h5", folder / "climo_2001.h5")
    statistics = compute_statistics(folder, SPLITS["train"], num_workers=1)
    assert len(statistics.files) == 3
    assert describe_folder(folder, SPLITS).dataset_sha256 == before == used_digest(statistics, SPLITS)
    assert used_digest(statistics, {**SPLITS, "validation": ["climo_2001.h5"]}) != before
    config = ClimatePipelineConfig(
        folder=folder, split_files=SPLITS, batch_size_per_rank=1, validation_batch_size=1, seed=0
    )
    pipeline = open_climate_pipeline("torch", config)
    assert pipeline.dataset_sha256 == before
    pipeline.close()
