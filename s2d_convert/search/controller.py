"""The LSTM that samples plans, decision by decision; it knows no reward and no plan.

Letters: N sequences in a batch, T decisions, A options of the largest decision, H hidden units.

After the controller of S2DNAS (Yuan et al., ECCV 2020) and NASNet (Zoph and Le, ICLR 2017): step t sees an embedding of
the option chosen at step t - 1 and one of the step itself; a head per step turns the hidden state into scores of the
options, of which only the allowed ones can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from s2d_convert.plans.decisions import Actions, Allowed


@dataclass(frozen=True)
class Sample:
    """Drawn sequences: actions, N times T options; log_prob and entropy of each sequence, float32 [N], with gradient."""

    actions: tuple[Actions, ...]
    log_prob: Tensor
    entropy: Tensor


class LSTMController(nn.Module):
    """A distribution over sequences of T decisions with `sizes[t]` options each; uniform per decision at first."""

    first: Tensor

    def __init__(self, sizes: Sequence[int], *, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"controller: got the sizes {tuple(sizes)}; expected at least one decision with options")
        generator = torch.Generator().manual_seed(seed)
        self.sizes = tuple(sizes)
        # One table of embeddings for all steps: `first[t] + option` is the row of an option of step t - 1; row 0 starts.
        first = np.cumsum([0, 1, *sizes[:-1]])[:-1]
        self.register_buffer("first", torch.as_tensor(first))
        self.option = nn.Parameter(torch.randn(1 + sum(sizes[:-1]), hidden, generator=generator) * 0.3)
        self.step = nn.Parameter(torch.randn(len(sizes), hidden, generator=generator) * 0.3)
        # By way of "meta", because the usual start would draw from the global generator, which is the caller's.
        self.cell = nn.LSTM(hidden, hidden, batch_first=True, device="meta").to_empty(device="cpu")
        for parameter in self.cell.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)
        self.head = nn.Parameter(torch.zeros(len(sizes), hidden, max(sizes)))
        self.bias = nn.Parameter(torch.zeros(len(sizes), max(sizes)))

    def sample(self, allowed: Allowed, *, generator: torch.Generator, count: int = 1, explore: float = 0.0) -> Sample:
        """`count` sequences; `allowed(prefix)` says which options the next decision has.

        With `explore` > 0 every decision is, with that probability, drawn evenly from the allowed options instead. The
        distribution is then this mixture, and `log_prob` and `entropy` are the mixture's.
        """
        drawn: list[Actions] = [()] * count
        masks = torch.zeros(count, len(self.sizes), max(self.sizes), dtype=torch.bool)
        with torch.no_grad():
            previous, state = torch.zeros(count, dtype=torch.int64), None
            for step in range(len(self.sizes)):
                masks[:, step] = self._masks(allowed, drawn, step)
                inputs = self.option[self.first[step] + previous] + self.step[step]
                output, state = self.cell(inputs[:, None], state)
                scores = output[:, 0] @ self.head[step] + self.bias[step]
                chances = _mixture(scores, masks[:, step], explore)
                previous = torch.multinomial(chances, 1, generator=generator)[:, 0]
                drawn = [(*d, a) for d, a in zip(drawn, previous.tolist(), strict=True)]
        return Sample(tuple(drawn), *self._score(drawn, masks, explore))

    def log_prob(self, actions: Sequence[Actions], allowed: Allowed, *, explore: float = 0.0) -> Sample:
        """The given sequences with their log-probability and entropy, float32 [N] each, with gradient."""
        masks = [self._masks(allowed, [a[:step] for a in actions], step) for step in range(len(self.sizes))]
        return Sample(tuple(actions), *self._score(actions, torch.stack(masks, dim=1), explore))

    def _masks(self, allowed: Allowed, prefixes: Sequence[Actions], step: int) -> Tensor:
        """Allowed options after each prefix, bool [N, A]."""
        size = self.sizes[step]
        masks = np.zeros((len(prefixes), max(self.sizes)), dtype=bool)
        for row, prefix in enumerate(prefixes):
            masks[row, :size] = allowed(prefix)
            if not masks[row].any():
                raise ValueError(
                    f"decision {step} after {prefix}: no option is allowed; expected at least one of {size}"
                )
        return torch.from_numpy(masks)

    def _score(self, actions: Sequence[Actions], masks: Tensor, explore: float) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(actions, dtype=torch.int64)
        previous = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], dim=1)
        hidden, _ = self.cell(self.option[self.first + previous] + self.step)
        scores = torch.einsum("nth,tha->nta", hidden, self.head) + self.bias
        chances = _mixture(scores, masks, explore)
        logs = chances.clamp_min(1e-30).log()
        return logs.gather(2, chosen[..., None]).sum(dim=(1, 2)), -(chances * logs).sum(dim=(1, 2))


def _mixture(scores: Tensor, mask: Tensor, explore: float) -> Tensor:
    """Probabilities of the options: (1 - explore) of the controller's own, explore of the even ones over what is allowed."""
    own = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (1 - explore) * own + explore * mask / mask.sum(dim=-1, keepdim=True)
