"""Train and evaluate the included models; see README.md."""
