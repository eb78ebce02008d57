"""Names of a bundle's files, and of the bundle in a run's folder. Imports no torch."""

MANIFEST = "manifest.json"  # written last: where it exists, the bundle is whole
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
BEST = "best"  # in a run's folder: the bundle of the best epoch, or of a search's winner
