"""Reports: what a run or a submission did, as one page."""
