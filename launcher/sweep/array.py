"""Commands as the tasks of a SLURM job array: one batch script that holds them all, rendered and given to sbatch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.sweep.config import SweepError

_TASK = """
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}
cd {here}

# A signal before the time limit, and a preemption, reach this script alone: it passes them on and waits until state is saved.
trap 'kill -USR2 "$child" 2>/dev/null' USR2 TERM
{python} -u -m launcher "$@" &
child=$!
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break  # else a signal interrupted the wait
done
if [ "$code" -eq 75 ]; then  # state is saved, the same command goes on
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def array_script(
    name: str, commands: Sequence[Sequence[str]], output: Path, *, most: int = 0, options: Sequence[str] = ()
) -> str:
    """The script of an array with a task for each `triaxis` command, all on one node each. most: tasks at a time, 0 for all;
    output: directory of what they print; options: further ones of sbatch, such as --partition=short."""
    limit = f"%{most}" if most else ""
    directives = [
        f"--job-name={name}",
        f"--array=0-{len(commands) - 1}{limit}",
        f"--output={output}/slurm-%A_%a.out",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks=1",
        "--signal=B:USR2@120",
        "--requeue",
        *options,
    ]
    cases = "\n".join(f"    {index}) set -- {shlex.join(command)} ;;" for index, command in enumerate(commands))
    body = _TASK.format(
        cases=cases,
        root=shlex.quote(str(Path(__file__).resolve().parents[2])),
        here=shlex.quote(os.getcwd()),
        python=shlex.quote(sys.executable),
    )
    return "#!/bin/bash\n" + "\n".join(f"#SBATCH {line}" for line in directives) + "\n" + body


def submit_array(script: str, path: Path) -> str:
    """Write the script and give it to sbatch; returns the job's number. SweepError where there is no SLURM, or it refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    if shutil.which("sbatch") is None:
        raise SweepError(f"there is no sbatch on this machine; submit {path} from a login node, or run on this machine")
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SweepError(f"sbatch {path}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout.strip().split(";")[0]
