"""How the emoji model was made: data, tokenizer, transformer, evaluation; see README.md."""
