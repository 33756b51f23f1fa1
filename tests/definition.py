"""Attention as three nested loops over Python floats: the oracle's oracle, without our code."""

import math


def attention(
    q, k, v, allowed, *, scale, softcap=None, bias=None, slope=None, sink=None, p=None, t=None
):
    """One head. q, k, v: lists of rows; allowed[i][j]: how often query i counts key j.

    bias[i][j] is added to the score, `slope * |p[i] - t[j]|` subtracted. Returns (out, lse).
    """
    out, lse = [], []
    for i, query in enumerate(q):
        scores = {}
        for j, key in enumerate(k):
            if not allowed[i][j]:
                continue
            s = scale * math.fsum(a * b for a, b in zip(query, key, strict=True))
            if softcap is not None:
                s = softcap * math.tanh(s / softcap)
            if bias is not None:
                s += bias[i][j]
            if slope is not None:
                s -= slope * abs(p[i] - t[j])
            if s != -math.inf:
                scores[j] = s
        sink_score = -math.inf if sink is None else sink
        peak = max([*scores.values(), sink_score], default=-math.inf)
        if peak == -math.inf:
            out.append([0.0] * len(v[0]))
            lse.append(-math.inf)
            continue
        weight = {j: allowed[i][j] * math.exp(s - peak) for j, s in scores.items()}
        total = math.fsum(weight.values()) + math.exp(sink_score - peak)
        columns = range(len(v[0]))
        out.append([math.fsum(w * v[j][c] for j, w in weight.items()) / total for c in columns])
        lse.append(peak + math.log(total))
    return out, lse
