"""Seeds for estimators that have none, parts of theirs included."""


def settle_random_states(estimator, rng):
    """Give each `random_state` that is None a seed, in place.

    Parameters
    ----------
    estimator : estimator
    rng : RandomState
        Draws in the order of the parameters' names.

    Returns
    -------
    estimator
    """
    params = estimator.get_params(deep=True)
    wanted = {
        name: int(rng.randint(2**31 - 1))
        for name in sorted(params)
        if name.rpartition("__")[2] == "random_state" and params[name] is None
    }
    return estimator.set_params(**wanted) if wanted else estimator
