"""Mechanisms: pictures, laws, and gradients against finite differences."""

import numpy as np


def differences(f, vjp, inputs, *, step=1e-6, seed=0):
    """Assert that vjp(dout, **inputs) is the gradient of sum(f(**inputs) * dout).

    `inputs` are the arrays to move; the gradient of `x` is the field `dx` of what vjp answers.
    """
    rng = np.random.default_rng(seed)
    dout = rng.standard_normal(np.shape(f(**inputs)))
    got = vjp(dout, **inputs)
    for name, x in inputs.items():
        direction = rng.standard_normal(x.shape)
        plus, minus = (
            np.sum(dout * f(**{**inputs, name: x + sign * step * direction})) for sign in (1, -1)
        )
        found = getattr(got, "d" + name)
        terms = found * direction

        assert found.shape == x.shape, name
        assert np.abs(terms).sum() > 0, name
        assert abs(terms.sum() - (plus - minus) / (2 * step)) <= 1e-7 * np.abs(terms).sum(), name
