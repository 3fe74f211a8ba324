"""Files -> tensors -> models."""
