"""What the operators share: calls as data and the one allocation function."""
