"""The `triaxis` command: one function a subcommand, light imports until one is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from launcher.help import COMMANDS, completions, overview

Command = Callable[[list[str]], int]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; users' errors become one message and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = _command(arguments)
    rest = arguments[len(name.split()) :]
    if name in ("", "-h", "--help", "help"):
        name = "help"
    if name not in HANDLERS:
        return _fail(f"{name}: no such command; choose one of {', '.join(HANDLERS)}")
    try:
        return HANDLERS[name](rest)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if not _is_users(error):
            raise
        return _fail(str(error))


def _command(arguments: list[str]) -> str:
    """The longest beginning of the line that is a command; what stands in its place where there is none."""
    for words in (3, 2):
        if (name := " ".join(arguments[:words])) in HANDLERS:
            return name
    group = arguments and arguments[0] in ("data", "checkpoint", "bench")
    return " ".join(arguments[: 2 if group else 1])


def _is_users(error: Exception) -> bool:
    users = (
        *("Recipe", "Model", "Parallel", "Data", "Checkpoint", "Report", "Worker", "Sweep"),
        *("Cluster", "Job", "Law", "Plan", "Health", "Life"),
    )
    names = {f"{room}Error" for room in users}
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _fail(message: str) -> int:
    from launcher.terminal import open_console

    console = open_console(soft_wrap=True, stderr=True)  # a terminal wraps; a log keeps a message whole
    console.print("triaxis:", style="bold red", end=" ")
    console.print(message)
    return 1


def _help(arguments: list[str]) -> int:
    print(overview())
    return 0


def _data_build(arguments: list[str]) -> int:
    from launcher.submit import build_corpus, build_share, config_dir_of, report_corpus

    share, arguments = _share_of(arguments)
    overrides, config_dir = config_dir_of(arguments)
    if "--help" in arguments:
        print(COMMANDS["data build"])
        return 0
    from launcher.compose import build_recipe, compose_tree

    recipe = build_recipe(compose_tree(overrides, config_dir))
    if share is None:
        return report_corpus(build_corpus(recipe))
    manifest = build_share(recipe, share)
    if manifest is not None:
        return report_corpus(manifest)
    print(
        f"share {share[0]} of {share[1]} of {recipe.corpus.directory} is done as far as it goes without the others; when "
        "they are, or do no more, `triaxis data build` with the same options does what is left"
    )
    return 0


def _share_of(arguments: list[str]) -> tuple[tuple[int, int] | None, list[str]]:
    """Split off `--shard i/n`; in a SLURM array the task's place in it, unless something else is said."""
    import os
    import re

    if "--shard" in arguments:
        at = arguments.index("--shard")
        found = re.fullmatch(r"(\d+)/(\d+)", "".join(arguments[at + 1 : at + 2]))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            from launcher.config import RecipeError

            raise RecipeError("--shard: needs i/n with i from 1 to n, such as --shard 2/8")
        return (int(found[1]), int(found[2])), arguments[:at] + arguments[at + 2 :]
    count = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1"))
    if count < 2:
        return None, arguments
    step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
    first, own = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "ID"))
    return ((own - first) // step + 1, count), arguments


def _data_inspect(arguments: list[str]) -> int:
    from data.inspect import describe

    _path(arguments, "data inspect", "corpora/stdlib")
    print(describe(arguments[0]))  # as it is: it may be a URL
    return 0


def _data_verify(arguments: list[str]) -> int:
    from data.corpus import Corpus

    _path(arguments, "data verify", "corpora/stdlib")
    path = arguments[0]  # as it is: it may be a URL
    for split in ("train", "validation"):
        corpus = Corpus(path, split)
        corpus.verify()
        print(f"{path}: {split} is whole, {corpus.tokens:,} tokens")
    return 0


def _report(arguments: list[str]) -> int:
    from launcher.report import write_report

    out = None
    if "--out" in arguments:
        at = arguments.index("--out")
        if at + 1 == len(arguments):
            return _fail("report: --out needs a file name, such as comparison.html")
        out, arguments = Path(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]
    if not arguments:
        return _fail("report: name at least one run directory, such as runs/tiny")
    for path in write_report([Path(argument) for argument in arguments], out):
        print(path)
    return 0


def _checkpoint_list(arguments: list[str]) -> int:
    from parallel.checkpoint.inspect import list_text

    print(list_text(_path(arguments, "checkpoint list", "runs/tiny")))
    return 0


def _checkpoint_verify(arguments: list[str]) -> int:
    from parallel.checkpoint.inspect import verify_text

    text, whole = verify_text(_path(arguments, "checkpoint verify", "runs/tiny"))
    print(text)
    return 0 if whole else 1


def _checkpoint_inspect(arguments: list[str]) -> int:
    from parallel.checkpoint.inspect import inspect_text

    print(inspect_text(_path(arguments, "checkpoint inspect", "runs/tiny")))
    return 0


def _complete(arguments: list[str]) -> int:
    print("\n".join(completions(" ".join(arguments))))
    return 0


def _completion(arguments: list[str]) -> int:
    from launcher.help import BASH_COMPLETION

    print(BASH_COMPLETION)
    return 0


def _plan(arguments: list[str]) -> int:
    for_budget = any(argument.startswith("budget=") for argument in arguments)
    return _at("launcher.laws.recipe:budget_command" if for_budget else "launcher.plan.command:plan_command")(arguments)


def _path(arguments: list[str], command: str, example: str) -> Path:
    from launcher.config import RecipeError

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise RecipeError(f"{command}: takes one path, such as {example}")
    return Path(arguments[0])


def _at(place: str) -> Command:
    """The command `module:function`, imported when it is called: help and completion stay quick."""

    def call(arguments: list[str]) -> int:
        module, _, name = place.partition(":")
        return getattr(import_module(module), name)(arguments)

    return call


HANDLERS: dict[str, Command] = {
    "train": _at("launcher.submit:train_command"),
    "submit": _at("launcher.jobs.submit:submit_command"),
    "jobs": _at("launcher.jobs.show:jobs_command"),
    "logs": _at("launcher.jobs.logs:logs_command"),
    "cancel": _at("launcher.jobs.cancel:cancel_command"),
    "plan": _plan,
    "fit": _at("launcher.laws.command:fit_command"),
    "sweep": _at("launcher.sweep.command:run_command"),
    "sweep run": _at("launcher.sweep.command:run_command"),
    "sweep status": _at("launcher.sweep.command:status_command"),
    "sweep table": _at("launcher.sweep.command:table_command"),
    "sweep plot": _at("launcher.sweep.command:plot_command"),
    "sweep transfer": _at("launcher.sweep.transfer:transfer_command"),
    "plan layout": _at("launcher.plan.layout:layout_command"),
    "sample": _at("launcher.generate:sample_command"),
    "report": _report,
    "compare": _at("launcher.compare:compare_command"),
    "data build": _data_build,
    "data index": _at("launcher.indexing:index_command"),
    "data inspect": _data_inspect,
    "data verify": _data_verify,
    "data order": _at("launcher.corpus.order:order_command"),
    "data stats": _at("launcher.corpus.stats:stats_command"),
    "data show": _at("launcher.corpus.show:show_command"),
    "data replay": _at("launcher.corpus.replay:replay_command"),
    "data audit": _at("launcher.corpus.replay:audit_command"),
    "checkpoint list": _checkpoint_list,
    "checkpoint verify": _checkpoint_verify,
    "checkpoint inspect": _checkpoint_inspect,
    "checkpoint convert": _at("launcher.convert:convert_command"),
    "checkpoint routing": _at("launcher.routing:routing_command"),
    "bench train": _at("launcher.bench.train:main"),
    "bench launch": _at("launcher.bench.launch:main"),
    "bench goodput": _at("launcher.bench.goodput:main"),
    "bench moe": _at("launcher.bench.moe:main"),
    "bench attention": _at("launcher.bench.attention:main"),
    "bench kernels": _at("launcher.bench.kernels.command:main"),
    "bench formats": _at("launcher.bench.formats:main"),
    "bench gradients": _at("launcher.bench.gradients:main"),
    "bench plan": _at("launcher.bench.plan:main"),
    "bench coordinates": _at("launcher.bench.coordinates:main"),
    "bench packing": _at("launcher.bench.packing:main"),
    "bench layouts": _at("launcher.bench.layouts:main"),
    "bench data build": _at("launcher.bench.databuild:main"),
    "bench data dedup": _at("launcher.bench.datadedup:main"),
    "bench data": _at("launcher.bench.data:main"),
    "completion": _completion,
    "complete": _complete,
    "help": _help,
}
