"""Other libraries' models, run through these operators."""
