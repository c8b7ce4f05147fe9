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
_MEASURE = (
    "add the device to rules/devices.toml with the source of its figures; or run `hpcai500 selfcheck --json "
    "FOLDER/run-1/selfcheck.json` on its nodes, likewise for every run, delete FOLDER/submission.json and assemble it "
    "anew with `hpcai500 submit --resume FOLDER`"
)

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
        "Every ledger opens as the rank, run and configuration whose folder it lies in, and is no copy of another's.",
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
    "chain.hosts": Rule(
        "The hosts of a run's ranks are those that its system files describe.",
        "A stronger or weaker machine than described could have made the run.",
        _MEND,
    ),
    "chain.nodes": Rule(
        "Each host has one ledger, with the lines of its ranks alone; they are numbered by their lowest ranks.",
        "Lines could be moved from one machine to another.",
        _MEND,
    ),
    "chain.local_ranks": Rule(
        "The ranks of a host count their places there from 0, each once.",
        "One place could be told of twice, and another left out.",
        _MEND,
    ),
    "chain.checkpoints": Rule(
        "A checkpoint says how far its rank is, is told of by all ranks alike, and has a file and content of its own.",
        "A run could be gone on with from what it never was.",
        _MEND,
    ),
    # signature and register
    "signature.form": Rule(
        "submission.json.sig, if it is there, has the form of a signature.",
        "A signature that cannot be read vouches for nothing.",
        "sign again with `hpcai500 sign`, or submit without a signature",
    ),
    "signature.digest": Rule(
        "A signature is over the submission.json that it lies beside.",
        "The submission was altered after it was signed, or the signature was lent.",
        "ask who signed it; whoever vouches for this submission signs it again",
    ),
    "signature.key": Rule(
        "A signature was made with the key that it names.",
        "Anybody could write a name under a submission.",
        "sign again with `hpcai500 sign`",
    ),
    "register.ticket": Rule(
        "The ticket bears its issuer's signature, and is for what was submitted and for who submits it.",
        "A ticket of other runs announces nothing about these.",
        "submit with the words that the ticket says; a ticket cannot be altered",
    ),
    "register.runs": Rule(
        "Every run that the ticket announced is in the submission once, finished or not, and no other run is.",
        "Bad runs could be left out, or good ones added.",
        "assemble all runs of the ticket with `hpcai500 submit --resume FOLDER --assemble`",
    ),
    "register.seeds": Rule(
        "The seed of an announced run follows from the ticket's challenge and the run's number.",
        "A seed that was known before the ticket could have been tried out.",
        "get a new ticket, and make its runs with `hpcai500 submit --ticket FILE`",
    ),
    "register.ledgers": Rule(
        "Every ledger opens with the digest of the submission's ticket, or with none where there is no ticket.",
        "Runs of another ticket could be lent, or those of a ticket be shown without the rest.",
        "submit the runs of one ticket, with the ticket",
    ),
    "register.times": Rule(
        "No run began before its ticket was issued or ended after the submission was made.",
        "A run that is older than its ticket was not announced.",
        "set the clocks of all nodes by NTP, and announce runs before they are made",
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
    "level.code": Rule(
        "All ranks and runs run the same workload code, at a level that closes layer 7 that of a release.",
        "Another program would be measured under the name of the reference.",
        "verify with the hpcai500 version that made the runs; if its code was changed, submit to system or free level",
    ),
    "level.equivalence": Rule(
        "At system level, workload code that is not a release's is proven to compute what the reference computes.",
        "An implementation that computes less would be faster, and one that computes something else says nothing.",
        "write equivalence.json with `hpcai500 equivalence`, or as docs/equivalence.rst defines it, beside the "
        "submission, and assemble that anew; or submit to free level",
    ),
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
    "runs.order": Rule(
        "Runs are listed in the order in which they were announced or started.",
        "The score is a median over windows of consecutive runs, and an order could be chosen that suits it.",
        "assemble the submission anew with `hpcai500 submit --resume FOLDER`",
    ),
    "runs.listed": Rule(
        "Every run of the same kind that lies beside the others and started before the submission was made is in it.",
        "Runs that went badly could be left out.",
        "assemble all runs with `hpcai500 submit --resume FOLDER`; keep other runs in folders of their own",
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
    "counts.truth": Rule(
        "What the validation set holds, as boxes of each class, is the same in all evaluations of all runs.",
        "An evaluation of fewer or easier boxes would be better.",
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
    # learning
    "learning.epochs": Rule(
        "The runs do not reach the qualities of the reference convergence points in implausibly few epochs.",
        "A quality curve can be invented; one that beats all honest training by far was.",
        "see rules/convergence.toml for the points; publish a new method that is so fast, and ask for its own points",
    ),
    "learning.epochs_unusual": Rule(
        "The runs do not reach the qualities of the reference convergence points in unusually few epochs.",
        "One in a hundred honest submissions is so fast by chance.",
        "nothing needs to be done; more runs would show whether it was chance",
        "warning",
    ),
    "learning.quality": Rule(
        "No evaluation has a quality that nobody has ever come to with such training.",
        "A quality can be invented, or the validation set be trained on.",
        "see rules/convergence.toml for the bound; publish a new method that is so good, and ask for its own bound",
    ),
    "learning.loss": Rule(
        "No loss is below the least that its labels, or its errors, make possible.",
        "Losses that were invented, or computed on other samples than the quality, betray themselves.",
        _AGAIN,
    ),
    "learning.start": Rule(
        "The first steps of a run have about the loss of a guess.",
        "Training that goes on from weights learnt before starts lower, and reaches any quality sooner.",
        "train from random weights",
    ),
    "learning.trend": Rule(
        "Where quality has risen, loss has fallen.",
        "Losses and qualities that do not go together do not come from one model.",
        _AGAIN,
    ),
    "learning.noise": Rule(
        "Losses have the noise of randomly chosen samples.",
        "A curve without noise was drawn and not measured.",
        _AGAIN,
    ),
    "learning.ranks": Rule(
        "All ranks have about the same loss in every epoch.",
        "A rank whose loss is another's trains another model, or none.",
        "look for a rank with broken hardware or without its gradients, and " + _AGAIN,
    ),
    "learning.copies": Rule(
        "No run's curve is that of another with some values changed, scaled or shifted.",
        "One good run could be shown several times.",
        "submit different runs",
    ),
    "learning.related": Rule(
        "Runs that end with similar quality end with similar loss.",
        "Runs of one submission train the same model on the same data.",
        _AGAIN,
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
    "times.gaps": Rule(
        "All but a fiftieth of a rank's clock, or 5 s, is time that the rank says it trained, evaluated or saved.",
        "What was done meanwhile nobody knows, and durations that were shortened show.",
        "look for what held the ranks up between two lines of the ledger, and make the run again",
    ),
    "times.skew": Rule(
        "No rank has a step, evaluation or checkpoint behind it before another has begun it.",
        "All ranks wait for each other there, so one whose clock says otherwise was altered, or its clock is wrong.",
        "set the clocks of all nodes alike (NTP; `hpcai500 selfcheck` measures them), and make the run again",
    ),
    "times.boot": Rule(
        "The wall clock and the monotonic clock of a host are as far apart for all of its ranks.",
        "The times of one rank were moved, or its clock was set during the start.",
        "let NTP set the clocks of all nodes before a run, not during it",
    ),
    "times.start_up": Rule(
        "The parts of the start-up fit into the time between the opening of the ledger and the clock's start.",
        "Start-up is not ranked, but compared.",
        _AGAIN,
    ),
    "times.staging": Rule(
        "Data was staged by the first rank of a node, once, and before it was opened.",
        "Staging is not ranked, but compared.",
        _AGAIN,
    ),
    "times.created": Rule(
        "A submission was made after the last of its runs.",
        "Times that lie in the future were made up.",
        "set the clock of the machine that assembles submissions, and assemble anew",
    ),
    "times.checkpoints": Rule(
        "No rank trains much longer without a checkpoint than configured.",
        "Checkpoints cost time, which is part of the ranked clock.",
        _AGAIN,
    ),
    # physics
    "physics.flops": Rule(
        "No rank computes faster than its device in the run's precision, and no host's ranks faster than its devices.",
        "A clock that was slowed down on all ranks alike shows in nothing else.",
        "if the device is right and its peak in rules/devices.toml is not, report it with a source",
    ),
    "physics.device": Rule(
        "A run on accelerators has some; if it may be ranked, they are in rules/devices.toml or were measured.",
        "Without a peak nobody knows whether a speed is possible.",
        _MEASURE,
    ),
    "physics.unknown_device": Rule(
        "Every accelerator of a run is one of rules/devices.toml, or was measured by the self-check.",
        "Without a peak nobody knows whether a speed is possible; a run of this size is never ranked, so it may be.",
        _MEASURE,
        severity="warning",
    ),
    "physics.bus": Rule(
        "Samples come to the accelerators of a host no faster than their buses carry them.",
        "A clock that was slowed down on all ranks alike shows in nothing else.",
        "if the bus is right and its speed in rules/devices.toml is not, report it with a source",
    ),
    "physics.storage": Rule(
        "Samples are read no faster than the memory of a host can be read.",
        "A clock that was slowed down on all ranks alike shows in nothing else.",
        "if the memory's speed in rules/devices.toml is too low, report it with a source",
    ),
    "physics.network": Rule(
        "The gradients of a step come to a host no faster than its network interfaces carry them.",
        "Ranks that do not exchange gradients train something else.",
        "if system.json lacks a network of the host, report how its kernel names it",
    ),
    "physics.energy": Rule(
        "Energy is that of the host's processors, accelerators or power supplies, between what they draw at rest and "
        "can be set to, and its readings are as many as their gaps need to fill its time.",
        "An energy that nothing supports could be claimed.",
        "if a figure in rules/devices.toml is wrong, report it with a source",
    ),
    # replay
    "replay.losses": Rule(
        "Steps that are trained again from a checkpoint or the seed lose what the ledgers say: to the bit on the same "
        "software and kind of processor, elsewhere as nearly as sums in another order do.",
        "Losses that no training gave can be invented, and made to agree with each other.",
        _AGAIN,
    ),
    "replay.data": Rule(
        "Steps that are trained again use as many samples as the ledgers say.",
        "Samples could be left out as if they did not decode.",
        _AGAIN,
    ),
    "replay.checkpoint": Rule(
        "A checkpoint from which steps are trained again is the file that the ledgers say, and one of the model.",
        "Another one could give any losses, and a hostile one harm whoever opens it.",
        "submit checkpoints as the run left them, or none",
    ),
}
