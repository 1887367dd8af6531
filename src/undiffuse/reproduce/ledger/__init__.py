"""The claims with their recipes, in the order of the papers. These are data: nothing is measured here."""

from __future__ import annotations

from undiffuse.reproduce.ledger import additions, architecture, ddim, guidance, headline, improved, origins, successors

CLAIMS = (
    *origins.CLAIMS,
    *improved.CLAIMS,
    *ddim.CLAIMS,
    *architecture.CLAIMS,
    *guidance.CLAIMS,
    *headline.CLAIMS,
    *successors.CLAIMS,
    *additions.CLAIMS,
)
"""All claims: C01 to C80 of the papers with a figure, C81 to C83 without one."""
