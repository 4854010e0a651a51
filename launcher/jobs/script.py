"""The batch script: slurm/job.sh with a job and a site written into it."""

from __future__ import annotations

import shlex
from pathlib import Path

from launcher.cluster import ClusterConfig
from launcher.jobs.allocation import Allocation
from launcher.jobs.config import JobConfig, time_text
from launcher.jobs.folder import Folder

TEMPLATE = Path(__file__).resolve().parents[2] / "slurm" / "job.sh"
OUTPUTS_OF_PYTHON = {"PYTHONPATH", "PYTHONSAFEPATH"}


def render(folder: Folder, name: str, allocation: Allocation, work: Path, python: str) -> str:
    """The text of the batch script. work: where the job runs; python: what the controller runs with."""
    recipe = allocation.recipe
    cluster, job = recipe.cluster, recipe.job
    lines = directives(folder, name, allocation) if cluster.scheduler == "slurm" else []
    values = {
        "TITLE": f"{name}: {allocation.world} ranks on {allocation.nodes} node{'s' * (allocation.nodes > 1)}",
        "DIRECTIVES": "\n".join(f"#SBATCH {line}" for line in lines),
        "MODULES": f"module load {' '.join(map(shlex.quote, cluster.modules))}" if cluster.modules else "",
        "ENVIRONMENT": "\n".join(
            f"export {key}={shlex.quote(str(value))}" for key, value in environment(cluster).items()
        ),
        "SETUP": "\n".join(cluster.setup),
        "WORK": shlex.quote(str(work)),
        "CODE": shlex.quote(str(folder.code)),
        "PYTHON": shlex.quote(python),
        "FOLDER": shlex.quote(str(folder.path)),
    }
    assert job is not None
    text: list[str] = []
    for line in TEMPLATE.read_text().splitlines():
        for key, value in values.items():
            line = line.replace(f"@{key}@", value)
        if line or (text and text[-1]):
            text.append(line)
    return "\n".join(text) + "\n"


def environment(cluster: ClusterConfig) -> dict[str, str]:
    """Variables of the ranks: those of the site over those that every run wants."""
    # one hardware queue: kernels that feed a collective start before it, as megatron-core's overlap expects
    wanted = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if cluster.gpus_per_node else {}
    return {**wanted, **{str(key): str(value) for key, value in cluster.environment.items()}}


def directives(folder: Folder, name: str, allocation: Allocation) -> list[str]:
    """What stands behind #SBATCH; what is not set is left to the site."""
    cluster, job = allocation.recipe.cluster, allocation.recipe.job
    least = min(allocation.recipes)
    nodes = f"{least}-{allocation.nodes}" if least < allocation.nodes else str(allocation.nodes)
    options: dict[str, object] = {
        "job-name": name,
        "nodes": nodes,
        "ntasks-per-node": allocation.tasks,
        **_gpus(cluster),
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.memory,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": time_text(job.seconds) if job.seconds else "",
        "signal": f"USR2@{job.signal_seconds}",  # to the ranks themselves, not to this script
        "exclude": ",".join(job.exclude),
        "nodelist": ",".join(job.nodelist),
        "output": folder.output,
        "open-mode": "append",
    }
    lines = [f"--{option}={_quoted(value)}" for option, value in options.items() if value]
    lines += ["--exclusive"] if cluster.exclusive else []
    lines += ["--requeue" if job.requeue else "--no-requeue"]
    if least < allocation.nodes:
        lines.append("--no-kill")  # a node that fails leaves the others to the controller
    return [*lines, *cluster.sbatch]


def _gpus(cluster: ClusterConfig) -> dict[str, object]:
    return {"gres": cluster.gres} if cluster.gres else {"gpus-per-node": cluster.gpus_per_node}


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text else text


def chain_options(job: JobConfig, index: int, before: str) -> list[str]:
    """Options of sbatch's command line for one link of a chain. before: id of the link before, empty for the first."""
    if job.chain_as == "array":
        waits = [f"--dependency={job.dependency}"] if job.dependency else []
        return [f"--array=1-{job.chain}%1", *waits]
    if index:
        return [f"--dependency=afterany:{before}"]
    return [f"--dependency={job.dependency}"] if job.dependency else []


def container_options(cluster: ClusterConfig, folders: list[str], work: str) -> list[str]:
    """Options of srun that run ranks in a container, by pyxis. folders: what every rank reads and writes."""
    if not cluster.container:
        return []
    own = [f"{folder}:{folder}" for folder in dict.fromkeys(folders)]
    mounts = ",".join([*own, *(mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.mounts)])
    return [f"--container-image={cluster.container}", f"--container-mounts={mounts}", f"--container-workdir={work}"]
