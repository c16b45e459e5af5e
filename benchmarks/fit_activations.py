"""Fits the polynomials of csrc/kernels/gsp_activation.h and prints them, with the errors that they leave.

    python benchmarks/fit_activations.py

Each is a weighted least squares fit at Chebyshev points whose weights are raised where the error is largest
(Lawson's iteration), which tends to the polynomial of least largest relative error. Coefficients are rounded to
float32 from the lowest on, the others being fitted again after each, so that the rounding of one is made up for by
the rest.
"""

import numpy as np
import scipy.special


def lawson(basis, target, fixed, steps=60):
    """Coefficients of `basis` [points, terms] for `target`, of which `fixed` are given already."""
    weight = np.full(len(target), 1.0)
    rest = target - basis[:, : len(fixed)] @ fixed
    free = basis[:, len(fixed) :]
    best, least = None, np.inf
    for _ in range(steps):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(free * root[:, None], rest * root, rcond=None)[0]
        error = np.abs(free @ found - rest)
        if error.max() < least:
            best, least = found, error.max()
        weight *= error / error.max() + 1e-3
        weight /= weight.sum()
    return best


def fit(function, low, high, degree, *, first=None, points=4000):
    """Return float32 coefficients, lowest first, of least relative error on [low, high], and that error.

    `function` is called with float64 points and gives what the polynomial is to be; the error is relative to it.
    `first`: coefficients that are given, lowest first.
    """
    t = (1 - np.cos(np.pi * (np.arange(points) + 0.5) / points)) / 2
    x = low + (high - low) * t
    y = function(x)
    basis = np.stack([x**i / y for i in range(degree + 1)], axis=1)
    fixed = np.array(first or [], np.float64)
    while len(fixed) <= degree:
        found = lawson(basis, np.ones(points), fixed)
        fixed = np.append(fixed, np.float64(np.float32(found[0])))
    return fixed, np.abs(basis @ fixed - 1).max()


def show(name, coefficients, error):
    print(f"{name}: relative error {error:.1e} = 2^{np.log2(error):.1f}")
    for power, c in enumerate(coefficients):
        print(f"    {np.float32(c)!r:>32}  {float(c).hex()}f  x^{power}")


def main():
    # e^r on half a step of the logarithm of 2 either side.
    half = np.log(2) / 2 + 1e-4
    show("exp", *fit(np.exp, -half, half, 6, first=[1.0, 1.0]))

    # tanh(x) / x - 1, over x^2, in z = x^2 up to 0.625^2.
    def tanh_tail(z):
        x = np.sqrt(z)
        return np.where(z < 1e-3, -1 / 3 + z * (2 / 15 - z * (17 / 315 - z * 62 / 2835)),
                        (np.tanh(x) / x - 1) / np.maximum(z, 1e-9))  # fmt: skip

    show("tanh", *fit(tanh_tail, 0, 0.625**2, 4))

    # Phi(-t) e^(t^2/2) = erfcx(t / sqrt 2) / 2 in u = (t - 3) / (t + 3), for 0 <= t <= 15.
    def mills(u):
        t = 3 * (1 + u) / (1 - u)
        return scipy.special.erfcx(t / np.sqrt(2)) / 2

    show("Phi", *fit(mills, -1, 12 / 18, 9))


if __name__ == "__main__":
    main()
