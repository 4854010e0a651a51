#!/bin/bash
# @TITLE@
# Rendered by `triaxis submit` from slurm/job.sh. What runs, with which recipe and which code, lies beside this file.
@DIRECTIVES@
set -u
@MODULES@
@ENVIRONMENT@
@SETUP@
cd @WORK@ || exit 1
# the code as it was when this was submitted; PYTHONSAFEPATH keeps the work tree in this directory out of the way
export PYTHONPATH=@CODE@ PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
# The controller takes the place of this shell, so that signals reach it. It starts the ranks by srun, one task each, with
# the rendezvous from the allocation, reads how they ended, and starts again, requeues, or stops.
exec @PYTHON@ -m launcher.jobs.attempt @FOLDER@
