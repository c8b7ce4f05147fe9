"""Run folders of the smoke size as `hpcai500 submit` makes them, for tests that start the ranks themselves."""

from __future__ import annotations

import uuid
from pathlib import Path

from hpcai500.edition import load_edition
from hpcai500.formats import DataSource, RunConfig, write_json
from hpcai500.workloads import data_module


def make_run(
    folder: Path,
    data: Path,
    *,
    comm: str,
    num_ranks: int,
    settings: dict[str, str],
    num_nodes: int = 1,
    workload: str = "resnet50",
) -> Path:
    """Make ``run-1`` in a folder, with its configuration, and return it."""
    edition = load_edition()
    rules = edition.workload(workload)
    facts = data_module(workload).describe_data(data, rules.size("smoke"))
    config = RunConfig(
        run_id=str(uuid.uuid4()),
        workload=workload,
        level="free",
        size="smoke",
        edition=edition.number,
        rules_sha256=edition.sha256,
        seed=7,
        num_ranks=num_ranks,
        num_nodes=num_nodes,
        device="cpu",
        data=DataSource(path=str(data), dataset_sha256=facts.dataset_sha256, source=facts.source),
        settings=rules.resolve("smoke", "free", {"communicator": comm, **settings}),
    )
    (folder / "run-1").mkdir(parents=True)
    write_json(folder / "run-1" / "config.json", config)
    return folder / "run-1"
