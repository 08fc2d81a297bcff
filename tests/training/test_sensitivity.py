"""The sensitivity of the logits against the exact Jacobian."""

from __future__ import annotations

import numpy as np
import torch
from chain_law import analysed
from text_nets import net

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.training.reconstruction import sensitivity
from s2d_convert.training.reconstruction.passes import Samples


def test_sensitivities_are_the_squared_jacobian_summed_over_the_positions(monkeypatch: object) -> None:
    model = net(
        """g (float[N,3,5,5] image) => (float[N,4] logits) {
            a = Conv<pads=[1,1,1,1]>(image, wa)  x = Relu(a)  b = Conv(x, wb)  y = Relu(b)
            p = GlobalAveragePool(y)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), wb=(6, 4, 1, 1), wl=(4, 6),
    )  # fmt: skip
    graph, channels, weights = analysed(model)
    images = np.random.default_rng(0).standard_normal((32, 3, 5, 5)).astype(np.float32)
    network = StagedNet(AnalysedModel(graph, channels), weights).eval().requires_grad_(False)
    with torch.no_grad():
        samples = Samples(network, images, device=torch.device("cpu"), positions=8, kept_bytes=0)
    (first, second) = [n for n in graph.nodes if n.op == "Conv"]
    monkeypatch.setattr(sensitivity, "DIRECTIONS", 400)  # type: ignore[attr-defined]
    got = sensitivity.sensitivities(samples, [first, second], macs=total_macs(graph))

    wb, wl = (torch.tensor(graph.constants[name]) for name in ("wb", "wl"))
    logits_by_y = wl - wl.mean(0)  # a shift of all logits counts for nothing
    a = torch.nn.functional.conv2d(torch.tensor(images), torch.tensor(graph.constants["wa"]), padding=1)
    b = torch.nn.functional.conv2d(a.relu(), wb)
    by_b = logits_by_y[:, None, :, None, None] / 25 * (b > 0)[None]  # [K, B, O, H, W]
    by_a = torch.einsum("kbohw,oi->kbihw", by_b, wb[:, :, 0, 0]) * (a > 0)[None]
    for node, jacobian in ((first, by_a), (second, by_b)):
        alone = jacobian.square().sum((0, 3, 4))
        together = jacobian.sum((3, 4)).square().sum(0)
        c = sensitivity.COHERENCE
        wanted = ((1 - c) * alone + c * together).mean(0).double()
        assert torch.allclose(got[node.name], wanted, rtol=0.15), (got[node.name], wanted)
