"""What `--help` shows, made from the recipes and from the documentation of every field; and tab completion."""

from __future__ import annotations

from pathlib import Path

COMMANDS = {
    "train": "train a recipe, or go on with it            triaxis train experiment=tiny",
    "submit": "queue a recipe as a job, SLURM's or here     triaxis submit experiment=llama_1b cluster=h100_8x64",
    "jobs": "state, step, loss and time left of jobs     triaxis jobs [NAME]",
    "logs": "what a run's ranks and its job printed      triaxis logs NAME [-f] [--rank N]",
    "cancel": "end a run's jobs, saving first              triaxis cancel NAME [--now]",
    "sweep": "every run of a recipe's axes, or go on with them  triaxis sweep experiment=mx_parity",
    "sweep run": "the same                                    triaxis sweep run experiment=mx_parity",
    "sweep status": "what is done, runs, waits and failed        triaxis sweep status sweeps/mx_parity",
    "sweep table": "figures laid beside one another             triaxis sweep table sweeps/mx_parity",
    "sweep plot": "and as a picture                            triaxis sweep plot sweeps/mx_parity",
    "fit": "a scaling law of a CSV or a sweep           triaxis fit chinchilla sweeps/isoflop --budget 1e18",
    "sweep transfer": "where the best learning rate lies by width  triaxis sweep transfer sweeps/mup_transfer",
    "plan": "memory, seconds, cost and the best layout   triaxis plan experiment=llama_1b cluster=h100_8x64 gpus=64",
    "plan layout": "ranks, and a picture of the pipeline's time    triaxis plan layout experiment=tiny_3d",
    "sample": "continue a text from a checkpoint           triaxis sample runs/tiny 'def '",
    "report": "pages of runs, or of a whole sweep          triaxis report runs/tiny | sweeps/isoflop",
    "compare": "loss curves of two runs or files, step by step  triaxis compare runs/tiny tests/golden/tiny.jsonl",
    "data build": "text to tokenizer to shards                 triaxis data build corpus=stdlib",
    "data index": "webdataset tars as they are, as a corpus    triaxis data index tars/ --out theirs tokenizer=byte",
    "data inspect": "what is in a corpus                         triaxis data inspect corpora/stdlib",
    "data verify": "check every byte of a corpus                triaxis data verify corpora/stdlib",
    "data order": "orderings that methods need                 triaxis data order corpora/stdlib --by neighbours",
    "data stats": "statistics as text and pictures, shuffles   triaxis data stats corpora/stdlib",
    "data show": "what a run trains on, as a page             triaxis data show experiment=tiny --samples 0:8",
    "data replay": "what each step of a run read, with hashes   triaxis data replay runs/tiny --steps 100:110",
    "data audit": "how often a run used each document          triaxis data audit runs/tiny",
    "checkpoint list": "checkpoints of a run                        triaxis checkpoint list runs/tiny",
    "checkpoint verify": "check every byte of a run's checkpoints     triaxis checkpoint verify runs/tiny",
    "checkpoint inspect": "tensors and state of the newest one         triaxis checkpoint inspect runs/tiny",
    "checkpoint convert": "Hugging Face folders, other shapes, averages  triaxis checkpoint convert runs/tiny exported",
    "checkpoint routing": "where a mixture's tokens go, over time        triaxis checkpoint routing runs/moe_tiny",
    "bench train": "Triaxis against a bare loop and a Trainer   triaxis bench train",
    "bench launch": "from the command to the first step, by part  triaxis bench launch",
    "bench goodput": "what failures cost, beside the optimum      triaxis bench goodput",
    "bench attention": "what a document mask costs                  triaxis bench attention",
    "bench kernels": "fused kernels as shares of the copy rate    triaxis bench kernels",
    "bench formats": "what number formats save and cost         triaxis bench formats",
    "bench gradients": "what formats do to a run's gradient       triaxis bench gradients runs/tiny --presets mxfp6,nvfp4",
    "bench coordinates": "activations over width and depth            triaxis bench coordinates",
    "bench moe": "what a mixture of experts costs             triaxis bench moe",
    "bench layouts": "bubbles against theory, engine against engine  triaxis bench layouts",
    "bench plan": "plans beside published steps and real bytes  triaxis bench plan",
    "bench packing": "losses of ways to read, at equal tokens      triaxis bench packing",
    "bench data build": "the build beside datasets.map and megatron-core  triaxis bench data build",
    "bench data dedup": "near-deduplication beside datasketch          triaxis bench data dedup",
    "bench data": "the stream beside other loaders             triaxis bench data",
    "completion": 'tab completion                              eval "$(triaxis completion bash)"',
}

BASH_COMPLETION = """_triaxis() {
    local IFS=$'\\n'
    COMPREPLY=($(triaxis complete "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= || ${COMPREPLY[0]} == */ ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -F _triaxis triaxis"""

HYDRA_FLAGS = """Flags
  --help             this text
  --config-dir DIR   recipes of your own, laid out like recipes/, found before these
  --cfg job          print the composed recipe instead of training (Hydra's; also --resolve, --package, --info)
  --multirun, -m     one run for each combination: optimizer.learning_rate=1e-3,2e-3 seed=1,2; several at a time with
                     hydra/launcher=processes hydra.launcher.workers=2, by SLURM with hydra/launcher=slurm"""


def overview() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "triaxis: pretraining on three axes, from a laptop to a cluster\n\n" + "\n".join(lines)


def train_help() -> str:
    """Groups, flags and every option with its default and meaning."""
    from launcher.compose import groups
    from launcher.schema import fields_of

    lines = ["triaxis train [group=recipe …] [option=value …] [flags]", "", HYDRA_FLAGS, "", "Groups"]
    for group, names in groups().items():
        lines.append(f"  {group + '=':12} {_wrap(' | '.join(names), 15)}")
    lines += ["", "Options, with the defaults that recipes start from"]
    section = None
    for path, default, text in fields_of():
        head = path.rsplit(".", 1)[0] if "." in path else ""
        if head != section:
            lines.append("")
            section = head
        lines.append(f"  {path}={_shown(default)}")
        lines.append(f"      {_wrap(text, 6)}")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ",".join(str(entry) for entry in default) + "]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _wrap(text: str, indent: int, width: int = 116) -> str:
    import textwrap

    return f"\n{' ' * indent}".join(textwrap.wrap(text, width - indent))


def completions(line: str) -> list[str]:
    """What could follow on a command line: subcommands, paths of runs, groups with their recipes, options."""
    from launcher.compose import groups
    from launcher.schema import fields_of

    words = line.split(" ")[1:]
    word, before = (words[-1], words[:-1]) if words else ("", [])
    if len(before) == 0:
        return sorted({name.split()[0] for name in COMMANDS if name.startswith(word)})
    if before == [before[0]] and before[0] in ("data", "checkpoint", "bench"):
        return list(dict.fromkeys(name.split()[1] for name in COMMANDS if name.startswith(f"{before[0]} {word}")))
    if before == ["bench", "data"]:
        return [name.split()[2] for name in COMMANDS if name.startswith(f"bench data {word}")]
    if before[0] == "sweep" and before[1:] in (["status"], ["table"], ["plot"], ["transfer"]):
        return [str(path.parent) for path in sorted(Path("sweeps").glob("*/sweep.db")) if str(path).startswith(word)]
    if before[0] in ("jobs", "logs", "cancel") and not word.startswith("-"):
        names = sorted({path.parent.parent.name for path in Path("runs").glob("*/jobs/001")})
        return [name for name in names if name.startswith(word) and name not in before]
    if before == ["fit"]:
        from launcher.laws.laws import entries

        return [name for name in entries() if name.startswith(word)]
    if before[0] in ("sample", "report", "compare", "checkpoint") or before == ["bench", "gradients"]:
        sweeps = [path.parent for path in Path("sweeps").glob("*/sweep.db")] if before[0] == "report" else []
        return [str(path) for path in sorted([*Path("runs").glob("*"), *sweeps]) if str(path).startswith(word)]
    if before[:2] in (["data", "order"], ["data", "stats"], ["data", "inspect"], ["data", "verify"]):
        return _corpus_words(before[1], word)
    known = groups()
    if "=" in word:
        group, _, begun = word.partition("=")
        return [f"{group}={name}" for name in known.get(group, []) if name.startswith(begun)]
    if before[:2] == ["data", "show"] and word.startswith("-"):
        return [option for option in ("--samples", "--out", "--split") if option.startswith(word)]
    commands = ["run", "status", "table", "plot", "transfer"] if before == ["sweep"] else []
    options = commands + [f"{group}=" for group in known] + [f"{path}=" for path, _, _ in fields_of()]
    return [option for option in options if option.startswith(word)]


def _corpus_words(command: str, word: str) -> list[str]:
    """Corpora, and the options of `triaxis data order` and `stats`."""
    if not word.startswith("-"):
        return [
            str(path.parent) for path in sorted(Path("corpora").glob("*/manifest.json")) if str(path).startswith(word)
        ]
    from launcher.options import flag, kinds_of

    kinds: dict[str, object] = {}
    if command == "order":
        from data.orderings import METHODS
        from launcher.corpus.order import OrderConfig

        kinds = kinds_of(OrderConfig, *METHODS.values())  # type: ignore[arg-type]
    elif command == "stats":
        from launcher.corpus.stats import StatsConfig

        kinds = kinds_of(StatsConfig)
    return [flag(name) for name in kinds if flag(name).startswith(word)]
