"""What mutants are allowed to survive, and why. Keys are shell patterns of full names, "BASE: FIELD HOW, WHERE".

The tests fail if a mutant survives that no table has, and if what a table has no longer survives.
"""

from __future__ import annotations

# What no figure, rule or identity follows from, or is altered everywhere alike so that all still hold.
DESCRIPTIVE: dict[str, str] = {
    "*: run_open.pid *": "a number of the operating system",
    "*: run_open.job *": "the scheduler's number of a job",
    "*: run_open.monotonic_ns *, all*": "where a clock began to count",
    "*: run_open.package_version *, all*": "a name; at the levels that close the code its digest counts",
    "*: run_open.run_id other, everywhere": "a name, given to the same run in all places",
    "*: config.run_id other, everywhere": "a name, given to the same run in all places",
    "*: run_close.reason *": "a sentence for people",
    "*: config.data.path *": "where the data lay",
    "resnet50: submission.submitter *": "a name; a signature vouches for it",
    "*: submission.created other, alone": "when the submission was assembled, later by seconds",
    "*: submission.runs.files shorter, alone": "a file that no rule asks for is no longer listed",
    "*: submission.runs.files.steps.h5 removed, alone": "a file that no rule asks for is no longer listed",
    "*: staging.*": "before the clock starts, never ranked",
    "*: staging * deleted, *": "before the clock starts, never ranked",
    "*: start_up.*": "before the clock starts, never ranked",
    "*: energy.num_readings *": "how often a counter was read",
    "*: energy.longest_gap_ns *": "how often a counter was read; a longer gap costs the figure",
    "*: energy.wall_ns *": "when it was read; what does not enclose the clock is no figure",
    "*: energy.source other *, *": "never ranked; within what nodes can draw, and informative without more readings",
    "resnet50: result.energy left out, *": "as in older submissions; the verifier computes it anew",
    "resnet50: result.energy nothing, *": "as in older submissions; the verifier computes it anew",
    "*: energy.energy_j *": "never ranked; within what the devices can draw",
    "*: energy.duration_ns *": "never ranked; within what the devices can draw",
    "*: energy * deleted, *": "never ranked, and no run must tell it",
    "*: energy * between runs, *": "never ranked; within what the devices can draw",
    "*: energy of run 1 copied to run 2, *": "never ranked; within what the devices can draw",
    "*: ledger cut by 1, rank 0": "the energy, which no run must tell",
    "*: data_open.train_bytes *, all": "bytes on the disk; the storage has to be as fast as they demand",
    "*: checkpoint.path other, *": "a file that is not part of a submission; a replay looks at it",
    "*: checkpoint.sha256 other, *": "a file that is not part of a submission; a replay looks at it",
    "*: resume.path other, everywhere": "a file that is not part of a submission; a replay looks at it",
    "*: resume.sha256 other, everywhere": "a file that is not part of a submission; a replay looks at it",
    "resnet50: submission.summary.vflops_noise *": "left out, as older submissions do; the verifier computes it anew",
    "*: window swapped between ranks, run 1": "whose of two losses is which; means over ranks stay",
    "*: window.loss_sum *, first": "one of many; the figure that follows is of the last",
    "*: checkpoint * run*, all ranks": "files that are not part of a submission; a replay looks at them",
    "resnet50: system.os *, everywhere": "free text",
    "resnet50: system.kernel *, everywhere": "free text",
    "resnet50: system.python *, everywhere": "free text",
    "resnet50: system.libraries.torch other, everywhere": "free text",
    "resnet50: system.environment*, everywhere": "variables that no rule asks for",
    "resnet50: system.nodes.memory_bytes *, everywhere": "no rule asks for it",
    "resnet50: system.nodes.network*, everywhere": "nothing goes over the network of a single node",
    "*: run_open.code_sha256 *, all": "the free level leaves the code open; the bases at hardware level do not",
}
OPEN_SETTINGS = {
    "resnet50": (
        "validation_batch_size momentum weight_decay* label_smoothing crop_* horizontal_flip torch_compile cuda_graphs "
        "num_workers prefetch report_steps checkpoint_every_s"
    ),
    "hardware": "validation_batch_size num_workers prefetch report_steps checkpoint_every_s",
    "detector at hardware": "validation_batch_size num_workers prefetch report_steps checkpoint_every_s",
}
DESCRIPTIVE |= {
    f"{base}: config.settings.{name} *, all runs": "the level leaves it open, and no figure follows; a replay uses it"
    for base, names in OPEN_SETTINGS.items()
    for name in names.split()
}

# Less than what honest runs differ by, as a rule says.
TOLERATED: dict[str, str] = {
    "*: evaluation.duration_ns *": "1 % of the clock; times.gaps leaves 2 % of it without a reason",
    "*: clock shifted by -1 s, *": "times.wall leaves clocks a second, and it lengthens a run",
    "*: clock shifted by 1 s, *": "times.wall leaves clocks a second, and it lengthens a run",
    "*: clock stepped by -1 s, *": "times.wall lets a clock be set by a second",
    "*: clock stepped by 1 s, *": "times.wall lets a clock be set by a second",
    "*: clock shifted by *0 s, run 1": "when a run was; with a ticket it is between the ticket and the submission",
}

# What changes the meaning and is not found out, or only by a replay, a signature or a ticket.
SURVIVORS: dict[str, str] = {
    "*: window.loss_sum *": "losses may be invented within what learning.* allows; a replay finds that out",
    "*: window * between runs, all ranks": "losses of another run are as possible as its own; a replay finds it out",
    "*: times: all x*, run 1": "a machine that is twice as fast or slow is possible, below the limits of physics.*",
    "*: times: all x*, all runs": "a machine that is twice as fast or slow is possible, below the limits of physics.*",
    "*: config.data.dataset_sha256 other, everywhere": "rules name sources, not digests: each site makes its own file",
    "*: data_open.dataset_sha256 other, everywhere": "rules name sources, not digests: each site makes its own file",
    "resnet50: system.nodes.processor other, everywhere": "whose machine it is, is told; a signature vouches for it",
    "resnet50: system.nodes.num_cores *, everywhere": "whose machine it is, is told; a signature vouches for it",
    "resnet50: system.nodes.instruction_sets *, everywhere": "whose machine it is, is told; a signature vouches for it",
    "resumed: segments last doubled, run 1": "a run may be resumed once more, which costs it the time",
    "resumed: segments last shifted by *": "how long a job waited before it went on is told by nothing but a ticket",
    "resumed: segments joined, run 1": "a run that was never stopped is possible; a replay or a ticket may tell",
    "fasterrcnn: runs * left out, submission": "only a ticket says how many runs there were",
    "fasterrcnn: runs closed as *, run 1": "more runs than the size demands, and one may fail",
}
