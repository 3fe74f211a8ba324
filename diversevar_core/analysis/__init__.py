"""How different and how good images are, and what makes them so."""
