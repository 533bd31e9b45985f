"""One suite over every meta-estimator."""


def check_meta_estimator(estimator):
    """Placeholder."""
