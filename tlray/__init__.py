"""Pictures in, the best fine-tuned model behind an endpoint out: transfer learning for vision on Ray."""

__version__ = "0.1.0"
