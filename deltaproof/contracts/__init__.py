"""What every backend promises, as data: conventions, errors and clauses."""
