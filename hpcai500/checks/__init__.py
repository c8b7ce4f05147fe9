"""The checks of the verifier: each looks at one concern and returns a finding for everything that is wrong with it.

A check is a function ``check_*(case) -> list[Finding]``. FORM_CHECKS look at files and at the form of ledgers; only if
the ledgers of all completed runs are whole (no finding of STRUCTURE_RULES) do CONTENT_CHECKS look at what they say,
since a missing line would else be reported many times over. Each check is given one run at a time; those of
WHOLE_CHECKS compare runs, and are given all of them with the ledgers of rank 0 alone. Adding a check: the function, a
line here, and a broken submission of its own in tests/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Callable

from hpcai500.checks import (
    chain,
    checkpoints,
    code,
    counts,
    energy,
    equivalence,
    figures,
    form,
    gaps,
    learning,
    level,
    physics,
    register,
    seeds,
    signature,
    start,
    statistics,
    times,
    together,
    work,
)
from hpcai500.checks.case import Case
from hpcai500.finding import Finding

Check = Callable[[Case], list[Finding]]

FORM_CHECKS: tuple[Check, ...] = (
    form.check_edition,
    form.check_files,
    form.check_configs,
    form.check_system,
    chain.check_ledgers,
    chain.check_ranks,
    chain.check_segments,
    chain.check_identity,
    chain.check_order,
    chain.check_status,
    level.check_settings,
    equivalence.check_proof_file,
    signature.check_signature,
    register.check_ticket,
    register.check_announced_runs,
    register.check_announced_seeds,
)
CONTENT_CHECKS: tuple[Check, ...] = (
    chain.check_cores,
    chain.check_nodes,
    chain.check_copies_of_ranks,
    chain.check_data_alike,
    level.check_number_of_runs,
    level.check_seeds,
    code.check_code,
    code.check_code_of_runs,
    equivalence.check_equivalence,
    counts.check_data,
    counts.check_model,
    counts.check_epochs,
    counts.check_windows,
    counts.check_evaluations,
    work.check_digests,
    work.check_learning_rates,
    work.check_shards_truth,
    work.check_truth,
    figures.check_quality,
    figures.check_result,
    figures.check_summary,
    times.check_order_of_times,
    times.check_clock,
    times.check_durations,
    times.check_parts,
    times.check_wall,
    times.check_checkpoints,
    times.check_created,
    gaps.check_gaps,
    start.check_start_up,
    start.check_staging,
    together.check_skew,
    together.check_boot,
    together.check_hosts,
    together.check_local_ranks,
    checkpoints.check_positions,
    checkpoints.check_saved,
    learning.check_epochs_to_quality,
    learning.check_highest_quality,
    learning.check_loss_bounds,
    learning.check_start,
    learning.check_trend,
    learning.check_noise,
    learning.check_ranks_alike,
    seeds.check_copies,
    seeds.check_related,
    statistics.check_order_of_runs,
    statistics.check_runs_are_listed,
    register.check_ticket_in_ledgers,
    register.check_ticket_times,
    physics.check_devices,
    physics.check_training_flops,
    physics.check_evaluation_flops,
    physics.check_bus,
    physics.check_storage,
    physics.check_network,
    energy.check_energy,
)
WHOLE_CHECKS: frozenset[Check] = frozenset(
    {
        form.check_edition,
        form.check_configs,
        form.check_system,
        level.check_number_of_runs,
        level.check_seeds,
        code.check_code_of_runs,
        equivalence.check_proof_file,
        equivalence.check_equivalence,
        work.check_truth,
        figures.check_summary,
        learning.check_epochs_to_quality,
        seeds.check_copies,
        seeds.check_related,
        statistics.check_order_of_runs,
        statistics.check_runs_are_listed,
        signature.check_signature,
        register.check_ticket,
        register.check_announced_runs,
    }
)
STRUCTURE_RULES = frozenset(
    {
        "ledger.torn",
        "ledger.line",
        "ledger.event",
        "ledger.value",
        "ledger.empty",
        "chain.ranks",
        "chain.segments",
        "chain.order",
        "chain.status",
        "level.missing_setting",
        "level.setting_value",
    }
)
