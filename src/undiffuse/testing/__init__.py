"""Tools to test a solver of your own: problems with known answers, and the order at which a solver converges.

`oracles` holds Gaussian mixtures whose denoiser, score and likelihood are known in closed form; `orders` measures
errors and orders of convergence on them, without Monte-Carlo noise.

    from undiffuse.testing import convergence_order
    assert 1.75 < convergence_order(MySolver()) < 2.5
"""

from __future__ import annotations

from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser
from undiffuse.testing.orders import convergence_order

__all__ = ["Mixture", "Noise64", "OracleDenoiser", "convergence_order"]
