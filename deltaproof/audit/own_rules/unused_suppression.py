"""An ignore comment silences nothing.

## What it does

Reports a `# deltaproof: ignore[name] reason` for which the rule, though it ran on this file, found nothing.

## Why it matters

The comment says that a hazard stands here and is accepted. Once the code is fixed, or the comment has drifted away from
its line, it would silence the next finding of that name without anybody having looked at it.

## Example

```python
x = 1  # deltaproof: ignore[unmasked-load] the buffer is padded
```

## Do this instead

```python
x = 1
```

## Seen in

A rule of the auditor's own: no public bug.

## Known limits

Says nothing of a rule that did not run: one in preview without `--preview`, one left out by `--select` or `--ignore`,
or one that failed on the file.
"""

from __future__ import annotations

from deltaproof.audit.own_rules.own_rule import OwnRule


class UnusedSuppression(OwnRule):
    code = "HZ010"
    name = "unused-suppression"


RULE = UnusedSuppression()
