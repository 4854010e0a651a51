"""`triaxis sweep`: run every point of a recipe's axes, or go on; and what there is to see of it.

    triaxis sweep [run] experiment=mx_parity [sweep.only.AXIS=[LABEL,…]] [overrides] [--retry] [--config-dir DIR]
                  [--slurm=TASKS [--sbatch=OPTION …]]
    triaxis sweep status DIR
    triaxis sweep table DIR [--csv FILE] [--json FILE]
    triaxis sweep plot DIR [--out FILE]

A sweep is a directory, sweep.dir/sweep.name. The same command goes on with it; what is done is not run again, what failed is
only with --retry. Several such commands may work on one sweep, each on runs of its own. Overrides apply to every run and win
over those of labels. With --slurm it is checked here and run by so many tasks of a SLURM array, each the same command at work
on the same table: --slurm=8 --sbatch=--partition=short --sbatch=--time=4:00:00. Sub-commands show it from anywhere.
"""

from __future__ import annotations

from pathlib import Path

from launcher.config import RecipeError
from launcher.exits import AGAIN
from launcher.options import Kinds, parse
from launcher.schema import build, to_plain
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.store import Row, Store
from launcher.terminal import open_console

console = open_console(soft_wrap=True)
TABLE, PICTURE = "table", "gaps.png"  # what a sweep leaves in its directory: table.csv, table.json and the picture


def run_command(arguments: list[str]) -> int:
    """`triaxis sweep [run] …`. 0: all chosen runs are done; 1: some failed or run elsewhere; 75: interrupted."""
    from launcher.submit import config_dir_of, progress_bar
    from launcher.sweep.points import plan, sweep_of
    from launcher.sweep.running import Runner
    from launcher.sweep.show import Screen
    from launcher.sweep.work import Work, starting_points
    from launcher.workers import StopRequest

    if "--help" in arguments or "-h" in arguments or not arguments:
        print(__doc__)
        return 0
    array, arguments = array_of(arguments)
    overrides, config_dir = config_dir_of([argument for argument in arguments if argument != "--retry"])
    for argument in overrides:
        if argument.startswith("-"):
            raise RecipeError(f"{argument}: no such option; `triaxis sweep --help` tells of all")
    sweep, line = sweep_of(overrides, config_dir)
    points = [] if sweep.search.kind in ("random", "optuna") else starting_points(sweep, line)
    with progress_bar("sweep", f"checking {len(points)} runs") as progress:
        planned = plan(points, config_dir, lambda done: progress(done, len(points), f"checking {len(points)} runs"))
    store = Store(Path(sweep.dir) / sweep.name, create=True)
    work = Work(store, sweep, line, config_dir, planned, console.print)
    store.describe(to_plain(sweep))
    among = work.enter()
    if "--retry" in arguments:
        console.print(f"{store.retry(among)} failed runs wait again")
    if array is not None:
        return _submit(store.directory, [text for text in arguments if text != "--retry"], *array)
    stop = StopRequest()
    with Screen(console, store, among, work.expected) as screen:
        among = work.run(Runner(store, sweep, config_dir, screen), stop)
    rows = [row for row in store.rows() if row.fingerprint in among]
    _leave_results(store)
    if stop.wanted:
        console.print("interrupted; the same command goes on from here")
        return AGAIN
    return _verdict(store.directory, rows)


def array_of(arguments: list[str]) -> tuple[tuple[int, list[str]] | None, list[str]]:
    """Split off --slurm=TASKS and every --sbatch=OPTION."""
    tasks = [text.partition("=")[2] for text in arguments if text.startswith("--slurm=")]
    options = [text.partition("=")[2] for text in arguments if text.startswith("--sbatch=")]
    rest = [text for text in arguments if not text.startswith(("--slurm=", "--sbatch="))]
    if options and not tasks:
        raise SweepError(f"--sbatch={options[0]}: has no effect without --slurm=TASKS; give both")
    if not tasks:
        return None, rest
    if not tasks[-1].isdigit() or int(tasks[-1]) < 1:
        raise SweepError(f"--slurm={tasks[-1]}: needs the number of tasks, such as --slurm=8")
    return (int(tasks[-1]), options), rest


def _submit(directory: Path, arguments: list[str], tasks: int, options: list[str]) -> int:
    """The same command as the tasks of an array; each claims runs of the table until none waits."""
    from launcher.sweep.array import array_script, submit_array

    words = ["sweep", "run", *arguments]
    script = array_script(directory.name, [words] * tasks, directory.resolve(), options=options)
    number = submit_array(script, directory / "array.sbatch")
    console.print(f"submitted  array {number} of {tasks} tasks; `triaxis sweep status {directory}` shows its runs")
    return 0


def _verdict(directory: Path, rows: list[Row]) -> int:
    from launcher.sweep.show import failures

    failed = failures(directory, rows)
    for text in failed:
        console.print(text)
    if failed:
        console.print("runs that failed are tried again with --retry")
    elsewhere = sum(row.state == "running" for row in rows)
    if elsewhere:
        console.print(f"{elsewhere} runs are in progress elsewhere; `triaxis sweep status {directory}` shows them")
    return 0 if all(row.state == "done" for row in rows) else 1


def _leave_results(store: Store) -> None:
    """Print the table, and write it and the picture into the sweep's directory."""
    from launcher.sweep.picture import picture
    from launcher.sweep.results import results_of, write_csv, write_json
    from launcher.sweep.show import show_table

    results = results_of(build(SweepConfig, store.description(), "sweep"), store.rows())
    if not results.lines:
        return
    show_table(console, results)
    write_csv(results, store.directory / f"{TABLE}.csv")
    write_json(results, store.directory / f"{TABLE}.json")
    (store.directory / PICTURE).write_bytes(picture(results))
    console.print(f"written  {store.directory / TABLE}.csv  {TABLE}.json  {PICTURE}")


def _opened(arguments: list[str], command: str, kinds: Kinds) -> tuple[Store, dict[str, str]]:
    usage = f"triaxis sweep {command} sweeps/mx_parity" + "".join(f" [--{name} FILE]" for name in kinds)
    places, values = parse(arguments, kinds, usage)
    if len(places) != 1:
        raise RecipeError(f"sweep {command}: takes one directory of a sweep: `{usage}`")
    return Store(Path(places[0])), values


def status_command(arguments: list[str]) -> int:
    """`triaxis sweep status DIR`."""
    from launcher.sweep.show import show_status

    store, _ = _opened(arguments, "status", {})
    show_status(console, store.directory, store.rows())
    return 0


def table_command(arguments: list[str]) -> int:
    """`triaxis sweep table DIR [--csv FILE] [--json FILE]`."""
    from launcher.sweep.results import results_of, write_csv, write_json
    from launcher.sweep.show import show_table

    store, places = _opened(arguments, "table", {"csv": str, "json": str})
    results = results_of(build(SweepConfig, store.description(), "sweep"), store.rows())
    show_table(console, results)
    if "csv" in places:
        write_csv(results, Path(places["csv"]))
    if "json" in places:
        write_json(results, Path(places["json"]))
    return 0


def plot_command(arguments: list[str]) -> int:
    """`triaxis sweep plot DIR [--out FILE]`."""
    from launcher.sweep.picture import picture
    from launcher.sweep.results import results_of

    store, places = _opened(arguments, "plot", {"out": str})
    results = results_of(build(SweepConfig, store.description(), "sweep"), store.rows())
    if not results.lines:
        raise RecipeError(f"sweep plot: no run of {store.directory} is done; `triaxis sweep status` shows what is")
    path = Path(places.get("out", store.directory / PICTURE))
    path.write_bytes(picture(results))
    console.print(path)
    return 0
