"""Data sets of many related tasks, and loaders for a user's own."""

from sk_meta.datasets.images import load_image_folder
from sk_meta.datasets.omniglot import load_omniglot
from sk_meta.datasets.tables import load_heart_disease, load_parkinsons, load_table

__all__ = [
    "load_heart_disease",
    "load_image_folder",
    "load_omniglot",
    "load_parkinsons",
    "load_table",
]
