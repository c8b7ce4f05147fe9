"""The rules that the verifier applies, each with its sentence: what ``hpcai500 explain RULE`` prints.

Every finding names a rule of this table. An ``error`` makes a submission invalid; a ``warning`` is shown and does not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Rule(NamedTuple):
    """One rule.

    Attributes:
        sentence: what must be so.
        why: what could go wrong, or be gained, if it were not.
        advice: what somebody who meets the finding can do.
        severity: what a breach means for the verdict.
    """

    sentence: str
    why: str
    advice: str
    severity: Severity = "error"


_MEND = "submit the files as the run left them; a run that lost some cannot be mended and must be made again"
_AGAIN = "make the run again with an unchanged hpcai500"
_SETTINGS = "see `hpcai500 submit --dry-run` for what the level allows, and make the runs again"

RULEBOOK: dict[str, Rule] = {
    # form of files
    "form.schema": Rule(
        "Every file has the form of its JSON Schema: no field missing, unknown, blank or out of range.",
        "A figure that is not there cannot be checked, and one that nobody knows says nothing.",
        _MEND,
    ),
    "form.names": Rule(
        "Workload, size and level are names of the edition.",
        "Other names have no rules.",
        "use the package version of the submission's edition",
    ),
    "form.edition": Rule(
        "A submission is judged by the edition of the rules under which it was made.",
        "Results of different editions do not compare.",
        "verify with the package of that edition",
    ),
    "form.rules": Rule(
        "The rules files had the digest of the edition when the submission was made.",
        "Somebody could relax the rules and keep their number.",
        "install the released package and make the runs again",
    ),
    "form.folder": Rule(
        "Run folders lie beneath the submission's folder and can be read.",
        "A path that leads elsewhere would make the verifier read what was not submitted.",
        "assemble the submission above its runs",
    ),
    "form.files": Rule(
        "Every file of a run is listed with its length and sha256, and is what the list says.",
        "A file that was altered after the run says nothing about it.",
        _MEND,
    ),
    "form.config": Rule(
        "All runs have the submission's workload, level, size, edition and data, and differ only in seed and run id.",
        "A median over different things is a figure of nothing.",
        "submit runs of one `hpcai500 submit` only",
    ),
    "form.system": Rule(
        "All runs ran on nodes of one kind with the same libraries, as the submission describes them.",
        "A score belongs to one machine.",
        "submit runs of one machine only",
    ),
    # ledgers
    "ledger.torn": Rule("A ledger of a completed run ends with a whole line.", "What is cut off is not known.", _MEND),
    "ledger.line": Rule("Every line of a ledger is a JSON object of its form.", "Other lines say nothing.", _MEND),
    "ledger.event": Rule("Every event of a ledger is one of hpcai500/events.py.", "Others have no meaning.", _MEND),
    "ledger.value": Rule(
        "Every event carries exactly the fields of its kind, within their ranges.", "Others have no meaning.", _MEND
    ),
    "ledger.chain": Rule(
        "Every line carries the number and the sha256 of the line before.",
        "A line that was altered, lost, added or moved shows.",
        _MEND,
    ),
    "ledger.empty": Rule("A ledger of a completed run has events.", "An empty one tells nothing.", _MEND),
    "chain.ranks": Rule(
        "Each segment has the ledgers of all of its ranks and no others.",
        "A rank that is left out could have done less, or been slower.",
        _MEND,
    ),
    "chain.segments": Rule(
        "Segments of a resumed run follow each other, each from a checkpoint that the run has made.",
        "Work that another run did would count as this one's.",
        _MEND,
    ),
    "chain.identity": Rule(
        "Every ledger opens as the rank, run and configuration whose folder it lies in.",
        "A ledger of another run could be lent.",
        _MEND,
    ),
    "chain.order": Rule(
        "The events of a ledger come in the order of a run, run_close last.",
        "What comes in another order was not written by a run.",
        _MEND,
    ),
    "chain.status": Rule(
        "What submission.json says became of a run is what its ledgers say.",
        "A failed run could pass as completed.",
        "assemble the submission again with `hpcai500 submit --resume FOLDER`",
    ),
    # level
    "level.closed_setting": Rule(
        "Settings of layers that the level closes keep the reference's values.",
        "A level compares what it leaves open, and nothing else.",
        _SETTINGS,
    ),
    "level.missing_setting": Rule(
        "Every setting of the workload has a value.", "There are no silent defaults.", _AGAIN
    ),
    "level.setting_value": Rule("Every setting has a value that it can take.", "Others have no meaning.", _AGAIN),
    "level.unknown_setting": Rule("Every setting is one of the workload's.", "Others have no meaning.", _AGAIN),
    # runs as a whole
    "runs.number": Rule(
        "As many runs completed as the size demands.",
        "Few runs say little, and one may be luck.",
        "train the missing runs with `hpcai500 submit --resume FOLDER`",
    ),
    "runs.seeds": Rule(
        "Every run has a seed, an id, a folder and losses of its own.",
        "One good run could be shown several times.",
        "submit different runs",
    ),
    "runs.learning_rates": Rule(
        "The learning rate of every window is the one that the declared policy gives for its step, on all ranks.",
        "Another policy would be another benchmark.",
        _AGAIN,
    ),
    # counts
    "counts.data": Rule(
        "The data set has the size's counts, classes and source, and is cut into steps by the global batch.",
        "Fewer or easier samples would be faster and better.",
        "prepare the data with `hpcai500 data prepare`, and make the runs again",
    ),
    "counts.model": Rule(
        "Parameters, input and FLOP a sample are those of the workload's model.",
        "A smaller model would be faster, and a larger count would claim more work than was done.",
        _AGAIN,
    ),
    "counts.epochs": Rule(
        "Every rank trained every step of every epoch once, in order, and skipped no sample.",
        "Work that was not done would count.",
        _AGAIN,
    ),
    "counts.windows": Rule(
        "The windows of a part of an epoch cover its steps without gap or overlap and add up to it.",
        "Work that was not done would count.",
        _AGAIN,
    ),
    "counts.digests": Rule(
        "The digests of the samples that the ranks used are those that seed and data set imply.",
        "Samples could be left out, or easy ones repeated.",
        _AGAIN,
    ),
    "counts.evaluations": Rule(
        "Every rank evaluated its shard of the whole validation set after each period of the rules and at the end.",
        "An evaluation left out saves time, and one of fewer samples can be chosen.",
        _AGAIN,
    ),
    # figures
    "figures.quality": Rule(
        "Every evaluation is the sum of its shards, and its quality and loss follow from the counts.",
        "A quality that nothing supports could be claimed.",
        _AGAIN,
    ),
    "figures.result": Rule(
        "Every figure of a result.json follows from the ledgers.",
        "A figure that nothing supports could be claimed.",
        "delete result.json and let `hpcai500 submit --resume FOLDER` write it anew",
    ),
    "figures.summary": Rule(
        "Every figure of the summary follows from the ledgers.",
        "A figure that nothing supports could be claimed.",
        "assemble the submission anew with `hpcai500 submit --resume FOLDER`",
    ),
    # times
    "times.order": Rule(
        "No line of a ledger is older than the line before it.", "Time that runs backwards makes a run shorter.", _AGAIN
    ),
    "times.clock": Rule(
        "The ranked clocks of all ranks run, and run at the same time.",
        "Ranks that did not run together make no run.",
        "set the clocks of all nodes alike (NTP), and make the run again",
    ),
    "times.durations": Rule(
        "What a rank says it spent fits into the time that passed.", "A clock that was shortened shows.", _AGAIN
    ),
    "times.parts": Rule("The parts of a window add up to its duration.", "A clock that was shortened shows.", _AGAIN),
    "times.wall": Rule(
        "Wall clock and monotonic clock agree.",
        "A clock that was shortened shows, if it was only one.",
        "let NTP set the clocks of all nodes before a run, not during it",
    ),
    "times.checkpoints": Rule(
        "No rank trains much longer without a checkpoint than configured.",
        "Checkpoints cost time, which is part of the ranked clock.",
        _AGAIN,
    ),
}
