"""Shards from elsewhere: a server that misbehaves delays or names a shard, and the cache is bounded, shared and whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data.cache import Entry, FileCache, NoRoomError
from data.config import DataError
from data.download import download, pause_seconds
from data.remote import ShardStore, open_location
from data.stream_config import CacheConfig
from data.urls import expand
from tests.data.misbehaving import Server

SHARD = bytes(range(256)) * 400  # 102,400 bytes
ROOT = Path(__file__).resolve().parent.parent.parent


def about(files: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {name: (len(body), hashlib.sha256(body).hexdigest()) for name, body in files.items()}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server({f"c/{i}.tar": bytes([i]) + SHARD for i in range(6)})
    yield found
    found.close()


@pytest.fixture
def options(tmp_path: Path) -> dict:
    return {"directory": str(tmp_path / "cache"), "timeout_seconds": 5.0, "attempts": 3, "backoff_seconds": 0.01}


Open = Callable[..., ShardStore]


@pytest.fixture
def store(server: Server, options: dict) -> Iterator[Open]:
    """store(**options of the cache): the server's shards."""
    opened: list[ShardStore] = []

    def make(**more: object) -> ShardStore:
        files = {name.removeprefix("c/"): body for name, body in server.files.items()}
        opened.append(ShardStore(f"{server.url}/c", about(files), CacheConfig(**{**options, **more})))
        return opened[-1]

    yield make
    for found in opened:
        found.close()


def files_in(cache: Path) -> list[Path]:
    return sorted((cache / "files").iterdir())


def until(condition: Callable[[], bool]) -> None:
    """Waits for what a background thread does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


QUIET = {"silent", "stall", "drip"}
FAULTS = ["status:500", "status:503", "status:429", "reset", "silent", "stall", "drip", "truncate", "short", "longer"]
LIES = ["wrong", "html", "page"]


@pytest.mark.parametrize("fault", FAULTS + LIES)
def test_a_fault_that_passes_delays(server: Server, store: Open, fault: str, tmp_path: Path) -> None:
    server.orders["c/1.tar"] = [fault]
    with store(timeout_seconds=0.5 if fault in QUIET else 5.0, attempts=9).path("1.tar") as path:
        assert path.read_bytes() == server.files["c/1.tar"]
    assert server.requests["c/1.tar"] >= 2
    assert [file.suffix for file in files_in(tmp_path / "cache")] == [""], "nothing half is left"


REASONS = {
    "status:500": r"HTTP status 500",
    "reset": r"closed by the server",
    "silent": r"silent for 0\.5 s",
    "stall": r"silent for 0\.5 s",
    "drip": r"stalled",
    "truncate": r"less than it announced|ended after \d+ of 102401 bytes",
    "short": r"ended after 102400 of 102401 bytes",
    "longer": r"more than 102401 bytes",
    "wrong": r"102401 bytes, but wrong ones",
    "html": r"HTML page .* of 39 bytes, not 102401",
    "page": r"102401 bytes, but wrong ones",
}


@pytest.mark.parametrize("fault", REASONS)
def test_a_fault_that_stays_names_the_shard(server: Server, store: Open, fault: str, tmp_path: Path) -> None:
    server.orders["c/2.tar"] = [fault] * 99
    with pytest.raises(DataError, match=rf"{server.url}/c/2\.tar: not received after 3 attempts: .*{REASONS[fault]}"):
        store(timeout_seconds=0.5 if fault in QUIET else 5.0).path("2.tar")
    assert server.requests["c/2.tar"] == 3
    assert files_in(tmp_path / "cache") == []


def test_what_will_not_change_is_told_at_once(server: Server, store: Open) -> None:
    del server.files["c/3.tar"]
    missing = ShardStore(f"{server.url}/c", about({"3.tar": SHARD}), store()._config)
    with pytest.raises(DataError, match=r"3\.tar: not received after 1 attempt: HTTP status 404"):
        missing.path("3.tar")
    with pytest.raises(DataError, match=r"localhost:1/.*3 attempts: connection refused"):
        ShardStore("http://localhost:1", about({"3.tar": SHARD}), store()._config).path("3.tar")


def test_a_server_may_say_when_to_come_back(server: Server, store: Open) -> None:
    server.orders["c/1.tar"] = ["retry:503:0.3"]
    began = time.monotonic()
    store(backoff_seconds=0.01).path("1.tar").close()
    assert time.monotonic() - began >= 0.3


def test_pauses_double_and_differ() -> None:
    pauses = [pause_seconds("u", attempt, 1.0, process=7) for attempt in range(9)]
    assert all(0.5 * 2 ** min(i, 6) <= pause <= 1.5 * 2 ** min(i, 6) for i, pause in enumerate(pauses))
    assert pauses == [pause_seconds("u", attempt, 1.0, process=7) for attempt in range(9)]
    assert len({pause_seconds("u", 0, 1.0, process=process) for process in range(50)}) == 50


def test_the_cache_keeps_its_limit_and_drops_what_was_not_used_for_longest(
    server: Server, store: Open, tmp_path: Path
) -> None:
    three = store(gigabytes=3 * (len(SHARD) + 1) / 1e9)
    for name in ("0.tar", "1.tar", "2.tar", "0.tar", "3.tar"):
        three.path(name).close()
        assert sum(file.stat().st_size for file in files_in(tmp_path / "cache")) <= 3 * (len(SHARD) + 1)
    server.requests.clear()
    for name in ("0.tar", "2.tar", "3.tar"):
        three.path(name).close()
    assert not server.requests, "1.tar went, which was used first"


def test_what_is_in_use_is_not_dropped(server: Server, store: Open) -> None:
    two = store(gigabytes=2 * (len(SHARD) + 1) / 1e9)
    with two.path("0.tar") as held:
        for name in ("1.tar", "2.tar", "3.tar"):
            two.path(name).close()
        assert held.read_bytes() == server.files["c/0.tar"]


def test_too_small_a_cache_is_told(store: Open) -> None:
    with pytest.raises(DataError, match=r"data.cache.gigabytes=1e-05: .*0\.tar alone has"):
        store(gigabytes=1e-5).path("0.tar")
    two = store(gigabytes=2 * (len(SHARD) + 1) / 1e9, timeout_seconds=0.5, attempts=9, backoff_seconds=0)
    with two.path("0.tar"), two.path("1.tar"), pytest.raises(DataError, match=r"no room for .*2\.tar"):
        two.path("2.tar")


def test_a_reader_is_asked_to_let_go(server: Server, options: dict) -> None:
    files = {name.removeprefix("c/"): body for name, body in server.files.items()}
    held: list = []

    def release() -> bool:
        if held:
            held.pop(0).close()
            return True
        return False

    cache = CacheConfig(**{**options, "gigabytes": 2 * (len(SHARD) + 1) / 1e9})
    with ShardStore(f"{server.url}/c", about(files), cache, release) as tight:
        held += [tight.path(f"{number}.tar") for number in range(2)]
        held.append(tight.path("2.tar"))
        assert [handle.path.exists() for handle in held] == [True, True] and len(held) == 2


def test_shards_are_fetched_ahead_in_order(server: Server, store: Open) -> None:
    ahead = store(parallel_downloads=1)
    ahead.prefetch(["3.tar", "1.tar", "0.tar"])
    until(lambda: len(server.requests) == 3)
    assert list(server.requests) == ["c/3.tar", "c/1.tar", "c/0.tar"]
    for name in ("3.tar", "1.tar", "0.tar"):
        with ahead.path(name) as path:
            assert path.read_bytes() == server.files[f"c/{name}"]
    assert set(server.requests.values()) == {1}


def test_fetching_ahead_does_not_drop_what_is_read_sooner(server: Server, store: Open, tmp_path: Path) -> None:
    three = store(gigabytes=3 * (len(SHARD) + 1) / 1e9, parallel_downloads=2)
    names = [f"{number}.tar" for number in range(6)]
    for place, name in enumerate(names):
        three.prefetch(names[place:])
        with three.path(name) as path:
            assert path.read_bytes() == server.files[f"c/{name}"]
            until(lambda place=place: len(files_in(tmp_path / "cache")) == 3 or place > 3)
    assert set(server.requests.values()) == {1}, dict(server.requests)


def test_what_comes_sooner_finds_its_room_free(options: dict, tmp_path: Path) -> None:
    """Whoever fetches ahead leaves room for what must come before; what is needed now drops the latest of what is ahead."""
    cache = FileCache(CacheConfig(**{**options, "gigabytes": 3 * len(SHARD) / 1e9}))
    line = [Entry(name, len(SHARD), hashlib.sha256(name.encode()).hexdigest()) for name in "abcd"]

    def write(part: Path) -> None:
        part.write_bytes(SHARD)

    def hold(turn: int, **how: bool) -> None:
        cache.hold(line[turn], write, ahead=lambda: line, **how).close()

    hold(1, urgent=False)
    hold(2, urgent=False)
    with pytest.raises(NoRoomError):
        hold(3, urgent=False)
    hold(3)
    hold(0)
    assert [cache.has(entry) for entry in line] == [True, True, True, False]
    with pytest.raises(NoRoomError):
        cache.hold(Entry("e", 1, "e"), Path.touch, ahead=lambda: line, urgent=False)


def test_reserved_space_stays_reserved(server: Server, options: dict, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(SHARD)
    server.orders["c/1.tar"] = ["html"] * 3
    with pytest.raises(DataError, match="not received"):
        download(f"{server.url}/c/1.tar", part, CacheConfig(**options), size=len(SHARD), sha256="")
    assert part.stat().st_size == len(SHARD)


def test_a_failure_ahead_is_told_when_the_shard_is_read(server: Server, store: Open) -> None:
    ahead = store(attempts=1)
    server.orders["c/0.tar"] = ["wrong", "wrong", "ok"]
    ahead.prefetch(["0.tar", "1.tar"])
    until(lambda: server.requests["c/1.tar"] == 1)
    with pytest.raises(DataError, match="wrong ones"):
        ahead.path("0.tar")
    with ahead.path("0.tar") as path:
        assert path.read_bytes() == server.files["c/0.tar"]


WORKER = """
    import sys
    from data.remote import CacheConfig, ShardStore
    url, directory, names, size, shas, gigabytes = sys.argv[1:]
    names, shas = names.split(","), shas.split(",")
    cache = CacheConfig(directory=directory, gigabytes=float(gigabytes), timeout_seconds=60, backoff_seconds=0.01)
    store = ShardStore(url, {name: (int(size), sha) for name, sha in zip(names, shas)}, cache)
    for _ in range(3):
        for name in names:
            with store.path(name) as path:
                import hashlib
                assert hashlib.sha256(path.read_bytes()).hexdigest() == shas[names.index(name)]
"""


def worker(server: Server, cache: Path, names: list[str], gigabytes: float) -> subprocess.Popen:
    found = about({name: server.files[f"c/{name}"] for name in names})
    size, shas = found[names[0]][0], ",".join(sha for _, sha in found.values())
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(WORKER),
        f"{server.url}/c",
        str(cache),
        ",".join(names),
        str(size),
        shas,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, str(gigabytes)], env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_share_a_cache_that_holds_less_than_they_want(server: Server, tmp_path: Path) -> None:
    names = [f"{number}.tar" for number in range(4)]
    workers = [worker(server, tmp_path / "cache", names, 3 * (len(SHARD) + 1) / 1e9) for _ in range(3)]
    for process in workers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert sum(file.stat().st_size for file in files_in(tmp_path / "cache")) <= 3 * (len(SHARD) + 1)


def test_processes_that_want_one_shard_fetch_it_once(server: Server, tmp_path: Path) -> None:
    workers = [worker(server, tmp_path / "cache", ["5.tar"], 1.0) for _ in range(3)]
    for process in workers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert server.requests["c/5.tar"] == 1


def test_a_process_that_is_killed_leaves_nothing_taken_for_whole(server: Server, store: Open, tmp_path: Path) -> None:
    server.orders["c/4.tar"] = ["stall"]
    process = worker(server, tmp_path / "cache", ["4.tar"], 1.0)
    part = tmp_path / "cache" / "files" / f"{about({'4': server.files['c/4.tar']})['4'][1]}.part"
    until(lambda: part.exists() and server.requests["c/4.tar"] == 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.exists() and not part.with_suffix("").exists()
    found = store(gigabytes=2 * (len(SHARD) + 1) / 1e9)
    for name in ("0.tar", "1.tar"):  # room for two: what the dead process left must go for them to stay
        found.path(name).close()
    assert not part.exists() and len(files_in(tmp_path / "cache")) == 2
    with found.path("4.tar") as path:
        assert path.read_bytes() == server.files["c/4.tar"]


def test_a_process_that_hangs_is_named(tmp_path: Path, options: dict) -> None:
    cache = FileCache(CacheConfig(**{**options, "timeout_seconds": 0.05, "backoff_seconds": 0.0}))
    entry, started, end = Entry("http://x/0.tar", 4, "a" * 64), threading.Event(), threading.Event()

    def hang(part: Path) -> None:
        started.set()
        end.wait()
        part.write_bytes(b"late")

    thread = threading.Thread(target=lambda: cache.hold(entry, hang).close())
    thread.start()
    started.wait()
    with pytest.raises(DataError, match=r"http://x/0\.tar: another process .* no progress"):
        cache.hold(entry, lambda part: None)
    end.set()
    thread.join()
    assert cache.has(entry)


def test_a_full_disk_is_told(options: dict) -> None:
    cache = FileCache(CacheConfig(**options))

    def full(part: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot keep shards there \(No space left on device\); free space"):
        cache.hold(Entry("s", 4, "b" * 64), full)
    assert list((cache.root / "files").iterdir()) == []


def test_a_local_directory_is_itself(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(SHARD)
    with ShardStore(str(tmp_path), about({"0.tar": SHARD})) as local:
        local.prefetch(["0.tar"])
        with local.path("0.tar") as path:
            assert path == tmp_path / "0.tar"
    place = open_location(tmp_path)
    assert place.local and place.sidecar("0.tar") == tmp_path / "0.tar"


def test_a_corpus_at_a_url_brings_its_small_files_once(server: Server, options: dict) -> None:
    server.files |= {
        "c/manifest.json": b'{"format": 2}',
        "c/tokenizer/triaxis_tokenizer.json": b"{}",
        "c/tokenizer/tokenizer.json": b"{}",
        "c/0.idx.json": b"[1]",
    }
    size, sha = about({"i": b"[1]"})["i"]
    for _ in range(2):
        place = open_location(f"{server.url}/c", CacheConfig(**options))
        assert (place.directory / "manifest.json").read_bytes() == b'{"format": 2}'
        assert place.sidecar("0.idx.json", size, sha).read_bytes() == b"[1]"
        assert (place.directory / "tokenizer" / "tokenizer.json").read_bytes() == b"{}"
    assert server.requests["c/0.idx.json"] == server.requests["c/tokenizer/tokenizer.json"] == 1
    server.files["c/manifest.json"] = b'{"format": 2, "name": "new"}'
    server.files["c/0.idx.json"] = b"[2]"
    changed = open_location(f"{server.url}/c", CacheConfig(**options))
    assert changed.directory != place.directory and changed.sidecar("0.idx.json").read_bytes() == b"[2]"


def test_a_page_in_place_of_a_manifest_is_told(server: Server, options: dict) -> None:
    server.files["c/manifest.json"] = b"{}"
    server.orders["c/manifest.json"] = ["html", "status:404"]
    with pytest.raises(DataError, match=r"/c/manifest\.json: the server sent 39 bytes that are no manifest"):
        open_location(f"{server.url}/c", CacheConfig(**options))
    with pytest.raises(DataError, match=r"manifest\.json: not received after 1 attempt: HTTP status 404"):
        open_location(f"{server.url}/c", CacheConfig(**options))


class Stalling(MemoryFileSystem):
    """An object store that never answers for names with `stall`, and fails once for names with `once`."""

    protocol = "stalling"
    store: ClassVar[dict] = {}
    failed: ClassVar[set] = set()

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("stalling://").strip("/")

    def size(self, path):
        if "stall" in path:
            threading.Event().wait(20)
        if "once" in path and path not in self.failed:
            self.failed.add(path)
            raise RuntimeError("slow down")
        return super().size(path)


def test_object_stores(options: dict) -> None:
    fsspec.register_implementation("stalling", Stalling, clobber=True)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/0.tar", SHARD)
    found = ShardStore("memory://bucket", about({"0.tar": SHARD, "1.tar": SHARD + b"1"}), CacheConfig(**options))
    with found.path("0.tar") as path:
        assert path.read_bytes() == SHARD
    with pytest.raises(DataError, match=r"memory://bucket/1\.tar: not received after 1 attempt: FileNotFoundError"):
        found.path("1.tar")
    Stalling().pipe("/bucket/once.tar", SHARD + b"2")
    hasty = CacheConfig(**{**options, "timeout_seconds": 0.4})
    store = ShardStore("stalling://bucket", about({"stall.tar": SHARD + b"3", "once.tar": SHARD + b"2"}), hasty)
    with store.path("once.tar") as path:
        assert path.read_bytes() == SHARD + b"2"
    with pytest.raises(DataError, match=r"stall\.tar: not received after 3 attempts: silent for 0\.4 s \(3 times\)"):
        store.path("stall.tar")


def test_a_store_whose_package_is_missing_names_it(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"gs://bucket/0\.tar: .*pip install gcsfs"):
        ShardStore("gs://bucket", about({"0.tar": SHARD}), CacheConfig(**options)).path("0.tar")
    with pytest.raises(DataError, match=r"nowhere://"):
        ShardStore("nowhere://bucket", about({"0.tar": SHARD}), CacheConfig(**options)).path("0.tar")


def test_options_of_the_cache_are_checked() -> None:
    for option in ("gigabytes", "timeout_seconds", "attempts", "parallel_downloads", "backoff_seconds"):
        with pytest.raises(DataError, match=rf"data\.cache\.{option}=-1"):
            CacheConfig(**{option: -1})


def test_lists_of_urls(tmp_path: Path) -> None:
    assert expand(["https://h/{000..002}.tar::s3://b/{a,b}.tar"]) == [
        *(f"https://h/00{i}.tar" for i in range(3)),
        *("s3://b/a.tar", "s3://b/b.tar"),
    ]
    for name in ("b.tar", "a.tar", "x.txt"):
        (tmp_path / name).touch()
    assert expand([str(tmp_path)]) == expand([f"{tmp_path}/*.tar"]) == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    (tmp_path / "empty").mkdir()
    for pattern, message in (
        ("pipe:curl x", "shell commands are not run"),
        (f"{tmp_path}/*.nothing", "no file has such a name"),
        (f"{tmp_path}/empty", "no .tar file"),
        ("https://h/{0..1.tar", "braces do not match"),
        ("https://h/{1,1}.tar", "named twice"),
    ):
        with pytest.raises(DataError, match=message):
            expand([pattern])
