"""Existing models: their convolutions and the chains behind them, found and fused.

- graphs: the operations of a model, by `torch.fx`.
- shapes: of the values between them.
- recorder, matching: which of them are a chain behind a convolution that a program can say.
- batch_norm, site: one such chain, run.
- rewrite: `epiconv.fuse`. report: `epiconv.report`.
"""

from epiconv.fusion.report import Report, report
from epiconv.fusion.rewrite import fuse

__all__ = ["Report", "fuse", "report"]
