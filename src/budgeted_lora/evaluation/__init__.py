"""What a model is worth: perplexity, in-context probes, speed."""
