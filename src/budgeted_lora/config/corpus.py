"""The corpus section: where documents come from, and how many of them are read."""

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from budgeted_lora.config.types import BelowOne, Fraction, LocalPath, Positive, Strict, key


class HubDataset(Strict):
    name: LocalPath = key("EleutherAI/the_pile_deduplicated", "Dataset on the Hub. [D]")
    revision: str | None = key(None, "Pinned commit of the dataset; required when `corpus.source` is hub. [ours]")
    config: str | None = key(None, "Configuration of a dataset that has several, e.g. a language. [ours]")
    split: str = key("train", "Split to stream. [ours]")

    @model_serializer(mode="wrap")
    def _without_an_empty_config(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Ids of cells hash this: a key that is younger than they are is left out where it says nothing.
        return {name: value for name, value in handler(self).items() if name != "config" or value is not None}


class Shards(Strict):
    """A large corpus in many files: one job per file reads it once, and none is held in memory."""

    pattern: str | None = key(
        None,
        "Name of a shard's file in the Hub dataset (source hub): `{shard:05d}` is its number from 0, `*` matches "
        "anything. [ours]",
    )
    train: Positive = key(..., "Shards to train on, from the first; they must hold `train_tokens`. [ours]")
    held_out: Positive | None = key(None, "Shards whose held-out documents are scored; `train` when empty. [ours]")

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
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} is not a valid pattern ({error!r})") from None
        if "7" not in name or name == self.pattern:
            raise ValueError(f"corpus.shards.pattern {self.pattern!r} does not contain {{shard}}")
        return self


class Corpus(Strict):
    source: Literal["docstrings", "files", "hub"] = key(
        "docstrings",
        "Where documents come from: docstrings of installed packages, local files or a Hub dataset. [ours]",
    )
    packages: list[str] = key([], "Import names of packages to read docstrings of (source docstrings). [ours]")
    files: list[LocalPath] = key(
        [],
        "Names or globs of .txt, .jsonl, .jsonl.zst and .parquet files, or of folders of them (source files). [ours]",
    )
    text_field: str = key("text", "Field or column that holds the text. [ours]")
    hub: HubDataset = key(HubDataset(), "The Hub dataset (source hub).")
    documents: Positive | None = key(
        None, "Maximum of documents, without duplicates and short ones; all when empty. [ours]"
    )
    characters: Positive | None = key(None, "Stop reading documents after this many characters; all when empty. [ours]")
    min_characters: int = key(80, "Shorter documents are left out. [ours]", ge=0)
    slice_per_mille: int = key(
        2, "Documents with MD5 mod 1000 below this are held out; 2 is the paper's 0.2 %. [S]", ge=1, lt=1000
    )
    train_tokens: Positive = key(2_550_000_000, "Tokens of the training file; a longer run starts over. [D]")
    validation_tokens: Positive = key(10_000_000, "Tokens of the held-out slice on which perplexity is measured. [S]")
    function_share: BelowOne = key(0.0, "Share of training tokens in function-style demonstration documents. [ours]")
    hold_out_words: bool = key(False, "Also split words: no function document has those of a query. [ours]")
    prompt_space: bool = key(
        False,
        "Whether a space follows `Q:` and `A:` in function documents and prompts, as in Function Vectors; the "
        "paper has none. [S]",
    )
    overlap_ngram: Positive = key(13, "Words in the n-grams of the overlap check. [ours]")
    overlap_share: Fraction = key(0.5, "Largest share of a held-out document's n-grams in training text. [ours]")
    shards: Shards | None = key(None, "One job per file, for a corpus larger than memory; one job when empty. [ours]")

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
