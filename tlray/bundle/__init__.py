"""A trained model as a folder (bundle), the registry of promoted models, and predictions from a bundle."""
