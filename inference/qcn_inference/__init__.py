"""The engine: checkpoints, tokenizer, model, state, scheduler and the HTTP service."""
