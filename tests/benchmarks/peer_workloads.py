"""What is timed, and what is asked of it."""

from dataclasses import dataclass
from functools import partial

MAML = ("loop", "higher", "torchopt")
PROTO = ("joint", "separate")
ON_GPU = ("sine-1000",)  # only where there is one, unless asked for
ASIDE = ("vmap",)  # shown, and not a peer: no package does it for its user
BFLOAT16 = {"precision": "bfloat16"}


def eager_and_compiled(asked):
    """Both, and what is asked of them."""
    return ("eager", {}, asked), ("compiled", {"compile": True}, asked)


def in_each_precision(float32, bfloat16):
    """Eager and compiled, of a network of convolutions: what is asked of each."""
    return (
        ("float32", {}, float32),
        ("float32, compiled", {"compile": True}, float32),
        ("bfloat16", BFLOAT16, bfloat16),
        ("bfloat16, compiled", {**BFLOAT16, "compile": True}, bfloat16),
    )


@dataclass(frozen=True)
class Workload:
    """What is timed: a network, tasks, a method, and how ours is asked to do it.

    `ours` holds (what is said of it, parameters of TaskNet, the ratio asked for).
    `batches` meta-batches of `n_tasks` are visited `epochs` times by ours, and in
    `peer_iterations` meta-iterations by each peer.
    """

    title: str
    network: str
    ours: tuple
    peers: tuple = MAML
    inner_lr: float = 0.4
    n_inner_steps: int = 1
    first_order: bool = False
    threads: int = 1
    n_tasks: int = 1
    batches: int = 4
    epochs: int = 4
    peer_iterations: int = 16

    def described(self, net):
        """As the workers take it."""
        keys = ("network", "inner_lr", "n_inner_steps", "first_order")
        return {**{key: getattr(self, key) for key in keys}, "net": net}


sine = partial(
    Workload,
    network="sine",
    peers=(*MAML, *ASIDE),
    inner_lr=0.01,
    n_tasks=25,
    batches=100,
    epochs=5,
)
omniglot = partial(Workload, network="omniglot", n_tasks=32)
conv4 = partial(
    Workload, network="conv4", n_tasks=8, batches=2, epochs=2, peer_iterations=4
)
proto = partial(Workload, peers=PROTO)

WORKLOADS = {
    "sine-1": sine(
        "sine, 1 step",
        ours=(("eager", {}, 8), ("compiled", {"compile": True}, 15)),
        peer_iterations=50,
    ),
    "sine-5": sine(
        "sine, 5 steps",
        ours=(("eager", {}, 6), ("compiled", {"compile": True}, 15)),
        n_inner_steps=5,
        peer_iterations=20,
    ),
    "sine-1000": sine(
        "sine, 1 step, 1,000 tasks",
        ours=(("eager", {}, 8), ("compiled", {"compile": True}, 15)),
        n_tasks=1000,
        batches=4,
        peer_iterations=4,
    ),
    "omniglot-1": omniglot("Omniglot MLP, 1 thread", ours=eager_and_compiled(1.8)),
    "omniglot-2": omniglot(
        "Omniglot MLP, 2 threads", ours=eager_and_compiled(2.5), threads=2
    ),
    "omniglot-5": omniglot(
        "Omniglot MLP, 5 steps",
        ours=eager_and_compiled(3.5),
        n_inner_steps=5,
        epochs=2,
        peer_iterations=4,
    ),
    "conv4-2nd": conv4("conv4, 2nd order", ours=in_each_precision(1.4, 2.2)),
    "conv4-1st": conv4(
        "conv4, 1st order",
        ours=in_each_precision(1.5, 2.2),
        first_order=True,
    ),
    "proto5": proto(
        "prototypes, 5-way",
        network="proto5",
        ours=in_each_precision(1.6, 2.5),
        batches=8,
        epochs=4,
        peer_iterations=16,
    ),
    "proto60": proto(
        "prototypes, 60-way",
        network="proto60",
        ours=in_each_precision(1.6, 2.5),
        batches=4,
        epochs=2,
        peer_iterations=4,
    ),
}
