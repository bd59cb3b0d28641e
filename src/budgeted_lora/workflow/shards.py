"""The jobs of a corpus in shards: which file each reads, what each is told. No network, no torch, no Snakemake.

The shards are numbered from 0 in the order of their names, whatever is on disk: a file that is missing is named by
the job that wants it.
"""

import glob
from pathlib import Path

from budgeted_lora.config.scale import Config
from budgeted_lora.errors import BadInput
from budgeted_lora.files import canonical_json

ENDINGS = (".jsonl.zst", ".jsonl", ".parquet", ".txt")


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
        """What the shard's file is called in the Hub dataset."""
        return str(self.shards.pattern).format(shard=int(shard))

    def download_name(self) -> str:
        """Where a downloaded shard lies, `{shard}` for its name."""
        ending = next((ending for ending in ENDINGS if str(self.shards.pattern).endswith(ending)), ".parquet")
        return f"{self.folder}/{{shard}}/source{ending}"

    def source_record(self, shard: str) -> str:
        """What the job that downloads a shard says of it."""
        return f"{self.folder}/{shard}/source.json"

    def source(self, shard: str) -> str:
        """The shard's file, or for a local folder in the Hub's form a pattern that one file matches."""
        if self.corpus.source == "files":
            found = sorted({path for pattern in self.corpus.files for path in glob.glob(pattern, recursive=True)})
            missing = f"corpus.files has {len(found)} files, none for shard {shard}"
            return found[int(shard)] if int(shard) < len(found) else missing
        if self.downloaded:
            return self.download_name().format(shard=shard)
        return str(Path(self.corpus.hub.name) / self.pattern(shard))

    def local_files(self, shard: str) -> list[str]:
        """The shard's file where it is not downloaded; empty if it is missing."""
        if self.downloaded:
            return []
        source = self.source(shard)
        return [source] if Path(source).is_file() else sorted(glob.glob(source))

    def fetch_values(self, shard: str) -> str:
        """What decides a download."""
        return canonical_json({"hub": self.corpus.hub.model_dump(), "pattern": self.pattern(shard)})

    def values(self, shard: str) -> str:
        """What decides a shard's tokens, besides its file and the tokenizer."""
        names = ("text_field", "min_characters", "slice_per_mille")
        training = int(shard) < self.shards.train
        return canonical_json({name: getattr(self.corpus, name) for name in names} | {"training": training})

    def join_values(self) -> str:
        """What decides the joined files, besides the shards."""
        names = ("source", "validation_tokens", "slice_per_mille", "overlap_ngram")
        values = {name: getattr(self.corpus, name) for name in names}
        hub = self.corpus.hub.model_dump() if self.corpus.source == "hub" else None
        more = {
            "hub": hub,
            "shards": len(self.names),
            "train_shards": self.shards.train,
            "train_tokens": self.train_tokens,
        }
        return canonical_json(values | more)

    def record(self, shard: str) -> str:
        """What a shard's job says of it."""
        return f"{self.folder}/{shard}/shard.json"

    def records(self) -> list[str]:
        """The same of every shard, in order."""
        return [self.record(name) for name in self.names]

    def tokens(self) -> list[str]:
        """The token and digest files of every shard."""
        files = [f"{side}.{ending}" for side in ("train", "held_out") for ending in ("bin", "idx", "json")]
        return [f"{self.folder}/{name}/{file}" for name in self.names for file in (*files, "digests.bin")]
