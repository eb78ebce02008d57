"""What a trained model is asked: evaluation, predictions for many pictures, embeddings, neighbours."""
