"""From a corpus to token files: documents, the held-out slice, probes, tokenizer, tokens."""
