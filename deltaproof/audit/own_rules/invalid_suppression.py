"""An ignore comment has no reason, no rule, or the name of a rule that there is not.

## What it does

Reports an ignore comment that has not the form `# deltaproof: ignore[name] reason`. Such a comment silences nothing.

## Why it matters

Whoever reads the code next has to know why the hazard does not bite here, or they can neither keep it so nor remove
the comment.

## Example

```python
b_k = tl.load(p_k)  # deltaproof: ignore[unmasked-load]
```

## Do this instead

```python
b_k = tl.load(p_k)  # deltaproof: ignore[unmasked-load] rows are padded to BT by the caller, and checked there
```

## Seen in

A rule of the auditor's own: no public bug.

## Known limits

Whether the reason is true is not judged.
"""

from __future__ import annotations

from deltaproof.audit.own_rules.own_rule import OwnRule


class InvalidSuppression(OwnRule):
    code = "HZ011"
    name = "invalid-suppression"


RULE = InvalidSuppression()
