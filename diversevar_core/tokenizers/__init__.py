"""Pictures <-> token maps <-> features."""
