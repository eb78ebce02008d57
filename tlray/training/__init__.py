"""Fine-tuning one configuration: batches, steps, checkpoints, averages of weights."""
