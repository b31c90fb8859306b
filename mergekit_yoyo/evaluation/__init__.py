"""Benchmark a model with EleutherAI's lm-evaluation-harness: transformers and MLX folders alike."""

from mergekit_yoyo.evaluation.run import Settings, evaluate

__all__ = ["Settings", "evaluate"]
