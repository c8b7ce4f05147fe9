"""Energy of runs: read while the clock runs, integrated inside of it, labelled by what the readings are worth.

``integrate``, ``label``, ``meter_file`` and ``figures`` are of the judge half: from ledgers and meter files to joules.
``rapl``, ``nvml``, ``slurm``, ``ipmi`` and ``recorder`` read the machine while a run is trained; ``command`` adds the
readings of a meter afterwards.
"""
