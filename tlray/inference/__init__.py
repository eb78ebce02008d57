"""Uses of a trained model: evaluation, predictions and embeddings of many pictures, nearest neighbours."""
