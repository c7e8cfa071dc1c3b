"""The recipe of qcn-nano, the embedded model: corpus, tokenizer, training, evaluation."""
