"""n-grams of evaluation texts in training text, against a search in plain Python."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from budgeted_lora.data.contamination import BATCH, document_texts, occurring
from budgeted_lora.data.tokenizer import END
from budgeted_lora.data.tokens import TokenFile, write_tokens
from budgeted_lora.models.checkpoint import shipped_tokenizer

words = st.lists(st.sampled_from(["a", "B", "b", "c\n", "d"]), max_size=12).map(" ".join)


@settings(deadline=None, max_examples=200)
@given(st.lists(words, max_size=4), st.lists(words, max_size=4), st.integers(1, 4))
def test_every_ngram_is_found_where_it_is(texts: list[str], training: list[str], n: int) -> None:
    def grams(text: str) -> list[tuple[str, ...]]:
        split = text.lower().split()
        return [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]

    known = {gram for text in training for gram in grams(text)}
    expected = [[gram in known for gram in grams(text)] for text in texts]
    assert [found.tolist() for found in occurring(texts, iter(training), n=n)] == expected


def test_documents_come_back_as_they_were(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shipped_tokenizer() / "tokenizer.json"))
    texts = [f"Q:{number}\nA: na\u00efve \U0001f642" for number in range(BATCH + 3)] + ["", " x "]
    ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    end = tokenizer.token_to_id(END)
    write_tokens(tmp_path / "train.bin", ids, vocab_size=tokenizer.get_vocab_size(), eos_id=end)
    assert list(document_texts(TokenFile.open(tmp_path / "train.bin"), tokenizer)) == texts
