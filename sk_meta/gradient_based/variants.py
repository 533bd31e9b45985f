"""What estimators share that settle some of MAML's options, and have the others."""

from sk_meta.gradient_based.maml import UsesMAML


class MAMLVariant(UsesMAML):
    """Parameters of a variant of MAML, which names what it settles in `_settled`."""

    def __init__(
        self,
        net=None,
        *,
        inner_lr=0.01,
        n_inner_steps=1,
        n_adapt_steps=None,
        first_order=False,
        transductive=False,
        gradient_checkpointing=False,
        support_size=5,
        evaluation_seed=0,
        random_state=None,
        verbose=0,
    ):
        self.net = net
        self.inner_lr = inner_lr
        self.n_inner_steps = n_inner_steps
        self.n_adapt_steps = n_adapt_steps
        self.first_order = first_order
        self.transductive = transductive
        self.gradient_checkpointing = gradient_checkpointing
        self.support_size = support_size
        self.evaluation_seed = evaluation_seed
        self.random_state = random_state
        self.verbose = verbose
