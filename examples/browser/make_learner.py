"""Train a small learner on 30 alphabets and write it as learner.onnx for the page.

    python examples/browser/make_learner.py

Takes two minutes on one processor core. The accuracy that it prints is that on 20 other
alphabets, from one drawing of each of five characters.
"""

import argparse
from pathlib import Path

from sk_meta import EpisodeSampler, PrototypicalClassifier, TaskNet, evaluate
from sk_meta.datasets import load_omniglot
from sk_meta.onnx import to_onnx

HERE = Path(__file__).parent


def trained(n_episodes, n_filters):
    """A prototypical network that has seen episodes of the background alphabets."""
    old = load_omniglot(split="background", image_size=28)
    episodes = EpisodeSampler(
        old.data, old.target, n_way=20, n_shot=1, n_query=3, n_episodes=n_episodes
    )
    net = TaskNet(module__n_filters=n_filters, max_epochs=1, batch_size=1, lr=2e-3)
    return PrototypicalClassifier(net, random_state=0).fit(episodes)


def main():
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "learner.onnx")
    parser.add_argument("--episodes", type=int, default=1500)
    parser.add_argument("--filters", type=int, default=32)
    options = parser.parse_args()
    meta = trained(options.episodes, options.filters)
    new = load_omniglot(split="evaluation", image_size=28)
    unseen = EpisodeSampler(
        new.data, new.target, n_way=5, n_shot=1, n_query=5, n_episodes=200
    )
    print("5 characters of alphabets never seen, one drawing each:")
    print(evaluate(meta, unseen))
    to_onnx(meta, options.output)
    print(f"{options.output.name}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
