"""What a job would take on more nodes: a stated model, calibrated by a short run or a self-check."""
