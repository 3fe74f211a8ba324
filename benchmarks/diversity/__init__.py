"""What sampling methods do to diversity, quality and alignment, on the paper's protocols."""
