"""The jobs of a corpus in shards: the file each reads and its options. No network, no torch, no Snakemake.

Shards are numbered from 0 in the order of their names, whatever is on disk; the job that reads a missing file names it.
"""

import glob
from functools import cached_property
from pathlib import Path
from typing import Any

from budgeted_lora.config.scale import Config
from budgeted_lora.data.readers import ENDINGS, local_files
from budgeted_lora.errors import BadInput


class ShardJobs:
    """The shards of a configuration whose corpus has some, and their files under results/<scale>/data/shards."""

    def __init__(self, config: Config, results: str, *, train_tokens: int) -> None:
        if config.corpus.shards is None:
            raise BadInput("corpus.shards is empty: this corpus is read in one piece")
        self.corpus, self.shards = config.corpus, config.corpus.shards
        self.folder = f"{results}/data/shards"
        self.train_tokens = train_tokens
        self.names = [f"{number:05d}" for number in range(self.shards.read)]

    @property
    def downloaded(self) -> bool:
        """Whether shards come over the network: a Hub dataset that is no local folder."""
        return self.corpus.source == "hub" and not Path(self.corpus.hub.name).is_dir()

    def pattern(self, shard: str) -> str:
        """Name of the shard's file in the Hub dataset."""
        return str(self.shards.pattern).format(shard=int(shard))

    def download_name(self) -> str:
        """Path of a downloaded shard, with `{shard}` for its name."""
        ending = next((ending for ending in ENDINGS if str(self.shards.pattern).endswith(ending)), ".parquet")
        return f"{self.folder}/{{shard}}/source{ending}"

    def source_record(self, shard: str) -> str:
        """Record of a shard's download."""
        return f"{self.folder}/{shard}/source.json"

    def source(self, shard: str) -> str:
        """The shard's file, or a pattern that one file matches, for a local folder in the Hub's form."""
        if self.corpus.source == "files":
            missing = f"corpus.files has {len(self._files)} files, none for shard {shard}"
            return self._files[int(shard)] if int(shard) < len(self._files) else missing
        if self.downloaded:
            return self.download_name().format(shard=shard)
        folder, pattern = self.corpus.hub.name, self.pattern(shard)
        return str(Path(folder if (Path(folder) / pattern).is_file() else glob.escape(folder)) / pattern)

    @cached_property
    def _files(self) -> list[str]:
        """Every local file of the corpus."""
        return local_files(self.corpus)

    def local_files(self, shard: str) -> list[str]:
        """The shard's file if it is local and present; else empty."""
        if self.downloaded:
            return []
        source = self.source(shard)
        return [source] if Path(source).is_file() else sorted(glob.glob(source))

    def download(self, shard: str) -> dict[str, Any]:
        """What determines a download."""
        return {"hub": self.corpus.hub.model_dump(), "pattern": self.pattern(shard)}

    def reading(self, shard: str) -> dict[str, Any]:
        """What determines a shard's tokens, besides its file and the tokenizer."""
        names = ("text_field", "min_characters", "slice_per_mille")
        return {name: getattr(self.corpus, name) for name in names} | {"training": int(shard) < self.shards.train}

    def joining(self) -> dict[str, Any]:
        """What determines the joined files, besides the shards."""
        names = ("source", "validation_tokens", "slice_per_mille", "overlap_ngram")
        return {name: getattr(self.corpus, name) for name in names} | {
            "hub": self.corpus.hub.model_dump() if self.corpus.source == "hub" else None,
            "shards": len(self.names),
            "train_shards": self.shards.train,
            "train_tokens": self.train_tokens,
        }

    def record(self, shard: str) -> str:
        """Record of a shard's tokens."""
        return f"{self.folder}/{shard}/shard.json"

    def records(self) -> list[str]:
        """Records of every shard, in order."""
        return [self.record(name) for name in self.names]

    def tokens(self) -> list[str]:
        """The token and digest files of every shard."""
        files = [f"{side}.{ending}" for side in ("train", "held_out") for ending in ("bin", "idx", "json")]
        return [f"{self.folder}/{name}/{file}" for name in self.names for file in (*files, "digests.bin")]
