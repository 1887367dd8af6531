"""Reports: runs, evaluations, sweeps and samples as one HTML file that opens without a network or a server.

`write_report` looks at what each path holds and calls the module of its kind: `runs`, `evaluations`, `sweeps` or
`samples`. Each returns a `page.Section`. `charts` turns a `pictures.Panel` into a chart that can be zoomed.
"""

from __future__ import annotations

from undiffuse.reports.build import KINDS, kind_of, write_report
from undiffuse.reports.page import Section, render

__all__ = ["KINDS", "Section", "kind_of", "render", "write_report"]
