"""A run as jobs of a scheduler: submitted, restarted, chained, watched and cancelled, under SLURM or on this machine."""
