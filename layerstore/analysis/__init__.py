"""What sharing would save: images out of archives, layouts and stores are cut and compared, and nothing is stored."""

from layerstore.analysis.analyzing import AnalyzeOptions, analyze
from layerstore.analysis.report import Analysis

__all__ = ["Analysis", "AnalyzeOptions", "analyze"]
