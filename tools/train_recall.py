"""Train the model of ``deltaproof verify --scenario serving``: ``python tools/train_recall.py``.

Prints loss and accuracy as it goes, and writes the weights. The same seed, number of threads and version of PyTorch
give the same weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deltaproof.verify.scenario import recall  # noqa: E402
from deltaproof.verify.scenario.model import WEIGHTS, RecallModel, Training, load  # noqa: E402

BATCH = 32
HELD_OUT = 10_000
"""Seed of the sequences that accuracy is measured on; training draws from another."""


@torch.no_grad()
def measure(
    model: RecallModel, sequences: int = 512, seed: int = HELD_OUT, *, forget: bool = False
) -> dict[str, float]:
    """Return exact match of whole answers and of single values, and the smallest margin of a best score.

    Args:
        model: the model.
        sequences: how many; a multiple of 64. Half of them have as many pairs as there can be.
        seed: seed of the sequences.
        forget: run every token from a recurrent state of zero.
    """
    generator = torch.Generator().manual_seed(seed)
    right, single, margins, batches = 0, 0.0, [], sequences // 64
    for at in range(batches):
        pairs = recall.MOST_PAIRS if at % 2 else int(torch.randint(8, 25, (1,), generator=generator))
        tokens, places = recall.draw(64, pairs, recall.MOST_ASKED, generator)
        scores = model(tokens[:, :-1], Training(forget=forget))[:, places]
        hit = scores.argmax(-1) == tokens[:, places + 1]
        right += int(hit.all(-1).sum())
        single += float(hit.float().mean())
        first, second = scores.topk(2).values.unbind(-1)
        margins.append(float((first - second).min()))
    return {"exact": right / sequences, "single": single / batches, "margin": min(margins)}


def train(steps: int, seed: int, rate: float) -> RecallModel:
    """Return a trained model."""
    torch.manual_seed(seed)
    model = RecallModel(recall.VOCABULARY)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    started = time.perf_counter()
    for step in range(1, steps + 1):
        # short sequences first: what to do with a pair is learned there
        most = 8 + min(1.0, 2.5 * step / steps) * (recall.MOST_PAIRS - 8)
        pairs = int(torch.randint(4, int(most) + 1, (1,), generator=generator))
        tokens, places = recall.draw(BATCH, pairs, min(pairs, recall.MOST_ASKED), generator)
        scores = model(tokens[:, :-1], Training())[:, places]
        loss = functional.cross_entropy(scores.flatten(0, 1), tokens[:, places + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps:
            found = measure(model, 128)
            told = f"{found['exact']:.3f} exact, {found['single']:.4f} single, margin {found['margin']:.2f}"
            print(f"step {step:5d}  loss {loss:.4f}  {told}  {time.perf_counter() - started:.0f} s", flush=True)
    return model


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file for the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train(options.steps, options.seed, options.rate)
    torch.save({name: x.half() for name, x in model.state_dict().items()}, options.output)
    kept = load(options.output)
    for words, found in (("as kept", measure(kept, 2048)), ("without the state", measure(kept, 512, forget=True))):
        print(f"{words}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
