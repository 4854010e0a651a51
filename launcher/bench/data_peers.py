"""The loaders that others wrote, as their documentation uses them for text, with all that makes them fast.

Each class writes the documents in its own form and gives endless batches of it, shuffled as globally as it can. Runs in an
interpreter of its own: see `launcher.bench.data`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.bench.data_rows import LENGTH, ROWS, Batch, batched, halves, packed


class Documents:
    """tokens: uint16 of all documents, each ending with `eod` = 0. ends: int64 [documents]."""

    def __init__(self, place: Path) -> None:
        self.tokens, self.ends = np.load(place / "tokens.npy", mmap_mode="r"), np.load(place / "ends.npy")

    def __iter__(self) -> Iterator[np.ndarray]:
        start = 0
        for end in self.ends.tolist():
            yield np.asarray(self.tokens[start:end])
            start = end

    def rows(self) -> Iterator[np.ndarray]:
        """The tokens cut to rows, as who writes samples of a fixed length does."""
        for start in range(0, len(self.tokens) - LENGTH, LENGTH + 1):
            yield np.asarray(self.tokens[start : start + LENGTH + 1])


class WebdatasetMembers:
    """webdataset's own pipeline over tars with one document a member: shard shuffle, a buffer of 1,000 documents, packing."""

    module = "webdataset"

    def write(self, documents: Documents, place: Path) -> None:
        """Reads the tars that were written for all."""

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        import webdataset as wds

        tars = sorted(map(str, (place.parent / "tars").glob("*.tar")))
        data = wds.WebDataset(tars, shardshuffle=len(tars), seed=seed).shuffle(1000).decode().repeat()
        return batched(packed(sample["npy"] for sample in data))


class WebdatasetBlocks:
    """webdataset over Triaxis's shards: a block is a sample; rows of it go through a buffer of 1,000."""

    module = "webdataset"

    def write(self, documents: Documents, place: Path) -> None:
        """Reads the shards that were written for Triaxis."""

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        import webdataset as wds

        tars = sorted(map(str, (place.parent / "blocks").glob("train-*.tar")))
        data = wds.WebDataset(tars, shardshuffle=len(tars), seed=seed, empty_check=False).repeat()
        blocks = (np.load(io.BytesIO(sample["tokens.npy"])) for sample in data)
        rows = wds.filters.shuffle(1000, seed=seed)(packed(blocks))
        return batched(rows)


class Mosaic:
    """mosaicml-streaming: samples of a fixed length in MDS shards, py1e shuffle."""

    module = "streaming"

    def write(self, documents: Documents, place: Path) -> None:
        from streaming import MDSWriter

        columns = {"tokens": f"ndarray:uint16:{LENGTH + 1}"}
        with MDSWriter(out=str(place / "mds"), columns=columns, compression=None, hashes=[]) as writer:
            for row in documents.rows():
                writer.write({"tokens": row})

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        from streaming import StreamingDataset

        data = StreamingDataset(
            local=str(place / "mds"), shuffle=True, shuffle_seed=seed, batch_size=ROWS, num_canonical_nodes=1
        )

        def rows() -> Iterator[np.ndarray]:
            while True:
                for sample in data:
                    yield sample["tokens"]

        return batched(rows())


class Litdata:
    """litdata: chunks of tokens (int32, since it writes torch's types), TokensLoader, its global shuffle."""

    module = "litdata"

    def write(self, documents: Documents, place: Path) -> None:
        import litdata

        def tokens(number: int) -> Iterator[torch.Tensor]:
            parts = np.array_split(documents.ends, _PARTS)
            ends = parts[number]
            start = 0 if number == 0 else int(parts[number - 1][-1])
            yield torch.from_numpy(np.asarray(documents.tokens[start : int(ends[-1])]).astype(np.int32))

        litdata.optimize(
            fn=tokens,
            inputs=list(range(_PARTS)),
            output_dir=str(place / "lit"),
            chunk_size=(LENGTH + 1) * 1024,
            item_loader=litdata.TokensLoader(),
            num_workers=1,
            start_method="fork",
        )

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        from litdata import StreamingDataset, TokensLoader

        data = StreamingDataset(
            str(place / "lit"), item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True, seed=seed
        )

        def rows() -> Iterator[np.ndarray]:
            while True:
                for sample in data:
                    yield sample.numpy()

        return batched(rows())


class Energon:
    """megatron-energon over the tars with one document a member: its buffers of 1,000, packing by its task encoder."""

    module = "megatron.energon"

    def write(self, documents: Documents, place: Path) -> None:
        from megatron.energon.flavors.webdataset import BaseWebdatasetFactory

        tars = place / "tars"
        tars.mkdir(parents=True)
        for tar in sorted((place.parent / "tars").glob("*.tar")):
            (tars / tar.name).hardlink_to(tar)
        names = sorted(path.name for path in tars.iterdir())
        BaseWebdatasetFactory.prepare_dataset(
            tars, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
        )
        (tars / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        from megatron.energon import WorkerConfig, get_loader, get_train_dataset

        data = get_train_dataset(
            place / "tars",
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=ROWS,
            shuffle_buffer_size=1000,
            max_samples_per_sequence=100,
            packing_buffer_size=256,
            task_encoder=_task_encoder(),
        )
        return (halves(samples.numpy()) for samples in get_loader(data))


def _task_encoder() -> Any:
    from dataclasses import dataclass

    from megatron.energon import Cooker, DefaultTaskEncoder, Sample, SampleDecoder, basic_sample_keys, stateless

    @dataclass
    class Text(Sample):
        tokens: Any

    @stateless
    def cook(sample: dict) -> Text:
        return Text(**basic_sample_keys(sample), tokens=np.asarray(sample["npy"]))

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)
        decoder = SampleDecoder()

        @stateless
        def encode_sample(self, sample: Text) -> Iterator[Text]:
            for start in range(0, len(sample.tokens), LENGTH + 1):
                yield Text(
                    **{key: getattr(sample, key) for key in _KEYS}, tokens=sample.tokens[start : start + LENGTH + 1]
                )

        def select_samples_to_pack(self, samples: list[Text]) -> list[list[Text]]:
            rows: list[list[Text]] = []
            space = 0
            for sample in samples:
                if len(sample.tokens) > space:
                    rows.append([])
                    space = LENGTH + 1
                rows[-1].append(sample)
                space -= len(sample.tokens)
            return rows

        @stateless
        def pack_selected_samples(self, samples: list[Text]) -> Text:
            row, filled = np.zeros(LENGTH + 1, np.int64), 0
            for sample in samples:
                row[filled : filled + len(sample.tokens)] = sample.tokens
                filled += len(sample.tokens)
            return Text(**{key: getattr(samples[0], key) for key in _KEYS}, tokens=row)

        @stateless
        def batch(self, samples: list[Text]) -> np.ndarray:
            return np.stack([sample.tokens for sample in samples])

        def encode_batch(self, batch: np.ndarray) -> np.ndarray:
            return batch

    return Encoder()


class Megatron:
    """megatron-core's indexed GPTDataset: .bin and .idx, three index arrays, as its samplers and collate read it."""

    module = "megatron.core.datasets.gpt_dataset"

    def write(self, documents: Documents, place: Path) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        place.mkdir(parents=True, exist_ok=True)
        builder = IndexedDatasetBuilder(str(place / "gpt.bin"), dtype=np.uint16)
        for document in documents:
            builder.add_document(torch.from_numpy(document.astype(np.int32)), [len(document)])
        builder.finalize(str(place / "gpt.idx"))

    def batches(self, place: Path, seed: int) -> Iterator[Batch]:
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

        config = GPTDatasetConfig(
            random_seed=seed,
            sequence_length=LENGTH,
            blend=([str(place / "gpt")], None),
            split="1,0,0",
            path_to_cache=str(place / "cache"),
            tokenizer=_Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        samples = 20 * (np.load(place.parent / "tokens.npy", mmap_mode="r").size // LENGTH)
        data = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
        for start in range(0, len(data) - ROWS, ROWS):
            found = [data[number] for number in range(start, start + ROWS)]
            yield torch.stack([one["tokens"] for one in found]), torch.stack([one["labels"] for one in found])


class _Tokenizer:
    eod, pad, eos_id, vocab_size = 0, -1, 0, 50304
    unique_identifiers: dict[str, str] = {"made": "up"}  # noqa: RUF012


PEERS: dict[str, tuple[str, type]] = {
    "webdataset, a document a member": ("webdataset", WebdatasetMembers),
    "webdataset, our block shards": ("webdataset", WebdatasetBlocks),
    "mosaicml-streaming": ("mosaicml-streaming", Mosaic),
    "litdata": ("litdata", Litdata),
    "megatron-energon": ("megatron-energon", Energon),
    "megatron-core GPTDataset": ("megatron-core", Megatron),
}
"""Distribution on PyPI and class of each."""


def peer(name: str) -> Any:
    """A loader by name, its package imported."""
    found = PEERS[name][1]()
    if isinstance(found, Mosaic):
        _without_torchvision()
    importlib.import_module(found.module)
    return found


_KEYS = ("__key__", "__restore_key__", "__subflavors__", "__sources__")
_PARTS = 8


def _without_torchvision() -> None:
    """streaming imports torchvision for pictures. Its builds on PyPI do not load beside torch for CPUs; text needs none."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".transforms", ".transforms.functional", ".transforms.v2", ".datasets", ".datasets.folder"):
            module = Anything(f"torchvision{name}")
            module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(module.__name__, None)
            sys.modules[module.__name__] = module
