"""Stage train_tokenizer: train the tokenizer that all models share on the mix of documents and demonstrations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from budgeted_lora.data.documents import train_texts
from budgeted_lora.data.functions import function_documents
from budgeted_lora.data.tokenizer import END
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, write_digest, write_json

TRAINING_CHARACTERS = 8_000_000


def train_bpe(texts: Iterator[str], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with one special token, the end of document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def mix(documents: Path, *, function_share: float, **rule: Any) -> Iterator[str]:
    """Training texts and function documents with the given share of characters, `TRAINING_CHARACTERS` in all."""
    function_texts = function_documents(**rule, held_out=False)
    prose = functions = 0
    for text in train_texts(documents):
        yield text
        prose += len(text)
        while functions < function_share / (1 - function_share) * prose:
            function_text, _ = next(function_texts)
            yield function_text
            functions += len(function_text)
        if prose + functions > TRAINING_CHARACTERS:
            return


def train_tokenizer(
    *,
    documents: Path,
    vocab_size: int,
    function_share: float,
    slice_per_mille: int,
    hold_out_words: bool,
    prompt_space: bool,
    out: Path,
) -> None:
    """Trains a tokenizer on the mix, as `transformers` loads it. Raises BadInput if its vocabulary is smaller."""
    check_digest(documents)
    rule = {"slice_per_mille": slice_per_mille, "hold_out_words": hold_out_words, "prompt_space": prompt_space}
    tokenizer = train_bpe(mix(documents, function_share=function_share, **rule), vocab_size=vocab_size)
    if tokenizer.get_vocab_size() != vocab_size:
        raise BadInput(
            f"tokenizer.vocab_size is {vocab_size}, but the corpus yields only {tokenizer.get_vocab_size()} tokens"
        )
    with atomic_folder(out) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", config)
    write_digest(out)
