"""Benchmark a model with EleutherAI's lm-evaluation-harness, and measure what it predicts, weighs
and takes: transformers and MLX folders alike."""

from mergekit_yoyo.evaluation.measuring import Measuring
from mergekit_yoyo.evaluation.run import EvaluationSettings, evaluate

__all__ = ["EvaluationSettings", "Measuring", "evaluate"]
