"""`cluster:` of a recipe: the machines. A profile in slurm/profiles/ describes a site once; recipes choose it by name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

ONLY_SLURM = (
    *("partition", "account", "qos", "constraint", "gres", "cpus_per_task", "memory", "exclusive", "max_time"),
    *("container", "mounts", "sbatch", "srun"),
)
"""Fields that mean nothing to the queue of this machine."""


class ClusterError(ValueError):
    """A cluster that cannot be: the message names the option, the value, the limit and the cure."""


@dataclass(frozen=True)
class ClusterConfig:
    """The machines."""

    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""
    threads: int = 0
    """CPU threads of each process; 0 shares the cores out."""
    layout: str = "recipe"
    """recipe: as `parallel` says; fastest: all GPUs, or on CPU the quickest of a few layouts, measured before the run."""
    nodes: int = 1
    """Nodes of the cluster that a job may have at most."""
    gpus_per_node: int = 0
    """GPUs of a node; 0 for nodes without."""
    chip: str = ""
    """What they are, by a name of launcher/plan's table of chips: a100_80gb, h100_sxm …; empty where nobody needs to know."""
    fabric: str = ""
    """What links nodes, by a name of launcher/plan's table of networks: hdr_8x200 (eight of 200 Gbit/s a node) …"""
    price: float = 0.0
    """US dollars that a GPU costs an hour; 0 where nobody counts."""
    scheduler: str = "local"
    """Who runs what `triaxis submit` hands over: slurm, or local, a queue on this machine."""
    ranks_per_node: int = 0
    """Ranks on a node of a job; 0: one for each GPU, one on a node without."""
    partition: str = ""
    """Partition (or several, with commas) that jobs go to; empty for the site's default."""
    account: str = ""
    """Account that jobs are charged to."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that nodes must have, as sbatch --constraint takes them."""
    gres: str = ""
    """GPUs in the site's own words, such as gpu:h100:8, where --gpus-per-node does not do."""
    cpus_per_task: int = 0
    """CPU cores of each rank; 0 leaves it to the site."""
    memory: str = ""
    """Memory of a node, such as 900G; 0 for all of it, empty leaves it to the site."""
    exclusive: bool = False
    """Nodes are not shared with other jobs."""
    max_time: str = ""
    """Longest time limit that the partition gives, such as 2-00:00:00; a longer job.time is refused before it is queued."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Lines of shell that each job begins with, after modules."""
    environment: dict = field(default_factory=dict)
    """Variables that ranks see, NAME: value."""
    python: str = ""
    """Interpreter of the ranks; empty for the one that submits (in a container: python)."""
    container: str = ""
    """Image that ranks run in, by pyxis: a registry's name or a .sqsh file. The job's own script runs outside it."""
    mounts: tuple[str, ...] = ()
    """Folders that a container sees, as path or outside:inside; the directory of the job and the run come by themselves."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as --mail-type=END."""
    srun: tuple[str, ...] = ()
    """Further options of srun, such as --cpu-bind=cores."""

    def __post_init__(self) -> None:
        """Refuse what no machine is."""
        choices_of = {
            "device": ("auto", "cpu", "cuda"),
            "layout": ("recipe", "fastest"),
            "scheduler": ("slurm", "local"),
        }
        for option, choices in choices_of.items():
            if getattr(self, option) not in choices:
                raise ClusterError(f"cluster.{option}={getattr(self, option)}: choose one of {', '.join(choices)}")
        limits = {"threads": 0, "nodes": 1, "gpus_per_node": 0, "price": 0, "ranks_per_node": 0, "cpus_per_task": 0}
        for option, limit in limits.items():
            if getattr(self, option) < limit:
                raise ClusterError(f"cluster.{option}={getattr(self, option)}: must be at least {limit}")
        self._check_scheduler()
        for name, value in self.environment.items():
            if not str(name).isidentifier() or isinstance(value, (dict, list)):
                raise ClusterError(f"cluster.environment.{name}={value}: must be the name of a variable and a value")

    def _check_scheduler(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        if self.scheduler == "local":
            for option in ONLY_SLURM:
                if (value := getattr(self, option)) != defaults[option]:
                    raise ClusterError(
                        f"cluster.{option}={value}: has no effect with cluster.scheduler=local; leave it out, or set "
                        "cluster.scheduler=slurm"
                    )
        if self.gres and self.gpus_per_node and not self.gres.endswith(f":{self.gpus_per_node}"):
            raise ClusterError(
                f"cluster.gres={self.gres}: asks for another number than cluster.gpus_per_node={self.gpus_per_node}; let it "
                f"end with :{self.gpus_per_node}"
            )
        if self.mounts and not self.container:
            raise ClusterError(
                f"cluster.mounts={list(self.mounts)}: has no effect without cluster.container; set it too"
            )

    @property
    def tasks(self) -> int:
        """Ranks on a node of a job."""
        return self.ranks_per_node or self.gpus_per_node or 1
