"""The corpus section: where documents come from, and how many of them are read."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from budgeted_lora.config.types import BelowOne, Fraction, Positive, Strict


class HubDataset(Strict):
    name: str = Field("EleutherAI/the_pile_deduplicated", description="Dataset on the Hub. [D]")
    revision: str | None = Field(
        None, description="Pinned commit of the dataset; required when `corpus.source` is hub. [ours]"
    )
    split: str = Field("train", description="Split to stream. [ours]")


class Shards(Strict):
    """A large corpus in many files: one job per file reads it once, and none is held in memory."""

    pattern: str | None = Field(
        None,
        description="Name of a shard's file in the Hub dataset (source hub): `{shard:05d}` is its number from 0, `*` "
        "matches anything. [ours]",
    )
    train: Positive = Field(
        description="Shards to train on, from the first; an error if they hold fewer than `train_tokens`. [ours]"
    )
    held_out: Positive | None = Field(
        None,
        description="Shards whose held-out documents are scored on, from the first; `train` when empty. [ours]",
    )

    @property
    def read(self) -> int:
        """Number of shards that are read."""
        return self.held_out or self.train

    @model_validator(mode="after")
    def _is_possible(self) -> "Shards":
        if self.read < self.train:
            raise ValueError(f"corpus.shards.held_out {self.held_out} is less than corpus.shards.train {self.train}")
        try:
            name = (self.pattern or "{shard}").format(shard=7)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} is not a valid pattern ({error!r})") from None
        if "7" not in name or name == self.pattern:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} does not contain {{shard}}")
        return self


class Corpus(Strict):
    source: Literal["docstrings", "files", "hub"] = Field(
        "docstrings",
        description="Where documents come from: docstrings of installed packages, local files or a Hub dataset. [ours]",
    )
    packages: list[str] = Field(
        default_factory=list,
        description="Import names of the packages whose docstrings are read (source docstrings). [ours]",
    )
    files: list[str] = Field(
        default_factory=list, description="Globs of .txt, .jsonl, .jsonl.zst and .parquet files (source files). [ours]"
    )
    text_field: str = Field("text", description="Field or column that holds the text. [ours]")
    hub: HubDataset = Field(default_factory=HubDataset, description="The Hub dataset (source hub).")
    documents: Positive | None = Field(
        None,
        description="Largest number of documents, not counting duplicates and short ones; all when empty. [ours]",
    )
    characters: Positive | None = Field(
        None, description="Stop reading documents after this many characters; all when empty. [ours]"
    )
    min_characters: int = Field(80, ge=0, description="Shorter documents are left out. [ours]")
    slice_per_mille: int = Field(
        2,
        ge=1,
        lt=1000,
        description="Documents with MD5 mod 1000 below this are held out; 2 is the paper's 0.2 %. [S]",
    )
    train_tokens: Positive = Field(
        2_550_000_000, description="Tokens of the training file; a longer run starts over. [D]"
    )
    validation_tokens: Positive = Field(
        10_000_000, description="Tokens of the held-out slice on which perplexity is measured. [S]"
    )
    function_share: BelowOne = Field(
        0.0,
        description="Share of training tokens that are function-style demonstration documents. [ours]",
    )
    hold_out_words: bool = Field(
        False,
        description="Also split the words: no function document then holds the words of an evaluation query. [ours]",
    )
    prompt_space: bool = Field(
        False,
        description="Whether a space follows `Q:` and `A:` in function documents and prompts, as in Function Vectors; "
        "the paper has none. [S]",
    )
    overlap_ngram: Positive = Field(13, description="Words in the n-grams of the overlap check. [ours]")
    overlap_share: Fraction = Field(
        0.5,
        description="Held-out documents with a larger share of their n-grams in training text are left out. [ours]",
    )
    shards: Shards | None = Field(
        None,
        description="Read a corpus that exceeds the memory in one job per file; in one job when empty. [ours]",
    )

    @model_serializer(mode="wrap")
    def _without_empty_shards(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the key when it is empty, so that it changes no id and no result from before there were shards."""
        values = handler(self)
        if values.get("shards", 0) is None:
            del values["shards"]
        return values

    @model_validator(mode="after")
    def _suits_shards(self) -> "Corpus":
        if self.shards is None:
            return self
        if self.source == "docstrings":
            raise ValueError("corpus.shards needs corpus.source files or hub")
        if (self.shards.pattern is not None) != (self.source == "hub"):
            raise ValueError("corpus.shards.pattern is required with source hub, and refused with other sources")
        whole = {"documents": None, "characters": None, "function_share": 0.0, "overlap_share": 1.0}
        for name, only in whole.items():
            if getattr(self, name) != only:
                value = "empty" if only is None else f"{only:g}"
                raise ValueError(f"corpus.{name} must be {value} with corpus.shards, which decide how much is read")
        return self
