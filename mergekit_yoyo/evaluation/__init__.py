"""Benchmark a model with EleutherAI's lm-evaluation-harness: transformers and MLX folders alike."""

from mergekit_yoyo.evaluation.run import EvaluationSettings, evaluate

__all__ = ["EvaluationSettings", "evaluate"]
