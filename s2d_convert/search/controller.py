"""The LSTM that samples sequences of decisions. It knows neither plans nor rewards.

Letters: N sequences in a batch, T decisions, A options of the largest decision, H hidden units.

It follows the controllers of S2DNAS (Yuan et al., ECCV 2020) and NASNet (Zoph and Le, ICLR 2017). Step t reads an embedding
of the option that was chosen at step t - 1 and one of the step itself. A head per step turns the hidden state into scores
of the options. Only allowed options can be drawn.
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
    """N sequences of T options (`actions`), with the log-probability and entropy of each, float32 [N], with gradient."""

    actions: tuple[Actions, ...]
    log_prob: Tensor
    entropy: Tensor


class LSTMController(nn.Module):
    """A distribution over sequences of T decisions with `sizes[t]` options each. Every decision starts out uniform."""

    first: Tensor

    def __init__(self, sizes: Sequence[int], *, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"controller: got the sizes {tuple(sizes)}; expected at least one decision with options")
        generator = torch.Generator().manual_seed(seed)
        self.sizes = tuple(sizes)
        # One embedding table serves all steps: row `first[t] + option` is an option of step t - 1, row 0 the start.
        first = np.cumsum([0, 1, *sizes[:-1]])[:-1]
        self.register_buffer("first", torch.as_tensor(first))
        self.option = nn.Parameter(torch.randn(1 + sum(sizes[:-1]), hidden, generator=generator) * 0.3)
        self.step = nn.Parameter(torch.randn(len(sizes), hidden, generator=generator) * 0.3)
        # Made on "meta", because the default initialisation would draw from the global generator, which is the caller's.
        self.cell = nn.LSTM(hidden, hidden, batch_first=True, device="meta").to_empty(device="cpu")
        for parameter in self.cell.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)
        self.head = nn.Parameter(torch.zeros(len(sizes), hidden, max(sizes)))
        self.bias = nn.Parameter(torch.zeros(len(sizes), max(sizes)))

    def sample(self, allowed: Allowed, *, generator: torch.Generator, count: int = 1, explore: float = 0.0) -> Sample:
        """Draw `count` sequences. `allowed(prefix)` returns the options of the next decision, bool [A].

        With probability `explore`, a decision is drawn uniformly from the allowed options instead. `log_prob` and
        `entropy` are those of this mixture.
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
        """Return the given sequences with their log-probability and entropy, float32 [N] each, with gradient."""
        masks = [self._masks(allowed, [a[:step] for a in actions], step) for step in range(len(self.sizes))]
        return Sample(tuple(actions), *self._score(actions, torch.stack(masks, dim=1), explore))

    def _masks(self, allowed: Allowed, prefixes: Sequence[Actions], step: int) -> Tensor:
        """Return the allowed options after each prefix, bool [N, A]. Raises ValueError where there are none."""
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
    """Return the probabilities of the options: a mixture of the controller's (1 - explore) and the uniform ones (explore)."""
    learned = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (1 - explore) * learned + explore * mask / mask.sum(dim=-1, keepdim=True)
