"""Learn three tasks one after the other without forgetting, inside the training loop, and as an Avalanche plugin.

    python examples/continual_learning.py            (--seeds 1 for a quick look)

Tasks are the digits 0-2, 3-5 and 6-8; they share a body and have a head each. Elastic weight consolidation holds each
weight by a spring as stiff as the tasks before need it. Here the stiffness, the diagonal of the empirical Fisher, is
collected by ``curvext.backward`` while a task is learned: no pass over its data afterwards, so they need not be kept.
It replaces what is common in such loops, the square of a batch's mean gradient, which is about the mean of g_n²
divided by the batch size, as gradients cancel in the mean:

    losses.mean().backward()
    for name, p in body.named_parameters():
        collected[name] += p.grad**2

``FisherPlugin`` is for Avalanche, whose loop calls the methods of its plugins by name: ``FisherPlugin(100.0)`` in place
of ``EWCPlugin(50.0)``, which squares mean gradients and leaves out the ½. It takes the exact Fisher diagonal after each
task. Here a loop of the same shape calls it.
"""

from statistics import mean
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import BATCH, LOSS, Data, accuracy, by_row, digits, only, seeds, table

import curvext as cx

TASKS = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
EPOCHS = 20
STRENGTH = 100.0  # λ
ROWS = ("none", "collected in the loop", "plugin, after a task")


class Consolidation:
    """Holds the weights of a body by what earlier tasks need of them.

    Args:
        body: the parameters that tasks share.
        strength: λ of λ/2 Σ_i F_i (θ_i − θ*_i)².
    """

    def __init__(self, body: nn.Module, strength: float) -> None:
        self.body, self.strength, self.samples = dict(body.named_parameters()), strength, 0
        self.star = {n: p.detach().clone() for n, p in self.body.items()}
        self.stiffness = {n: torch.zeros_like(p) for n, p in self.body.items()}
        self.collected = {n: torch.zeros_like(p) for n, p in self.body.items()}

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        """In place of ``losses.mean().backward()``; the body is ``model[0]``."""
        squares = cx.backward(losses, model, squares=True).squares
        self.samples += len(losses)
        for name, p in self.body.items():
            self.collected[name] += squares[f"0.{name}"]
            p.grad += self.strength * self.stiffness[name] * (p.detach() - self.star[name])

    def after_task(self) -> None:
        """What the task needs joins what those before it need, around the weights as they are now."""
        for name, p in self.body.items():
            self.stiffness[name] += self.collected[name] / self.samples
            self.collected[name].zero_()
            self.star[name] = p.detach().clone()
        self.samples = 0


class FisherPlugin:
    """Elastic weight consolidation by the exact Fisher diagonal, for ``plugins=`` of an Avalanche strategy.

    Args:
        strength: λ of λ/2 Σ_i F_i (θ_i − θ*_i)².
        params: names or patterns of the parameters that tasks share; None for all.
    """

    def __init__(self, strength: float, params: str | None = None) -> None:
        self.strength, self.params, self.tasks = strength, params, []

    def before_backward(self, strategy, **_) -> None:
        named = dict(strategy.model.named_parameters())
        for fisher, star in self.tasks:
            away = ((f * (named[n] - star[n]) ** 2).sum() for n, f in fisher.items())
            strategy.loss = strategy.loss + self.strength / 2 * sum(away)

    def after_training_exp(self, strategy, **_) -> None:
        model, data = strategy.model.eval(), DataLoader(strategy.experience.dataset, BATCH)
        fisher = cx.fisher_diagonal(model, strategy._criterion, data, "exact", params=self.params)
        self.tasks.append((fisher, {n: p.detach().clone() for n, p in model.named_parameters()}))


def learn(seed: int, way: str) -> tuple[float, float]:
    """(mean accuracy on all tasks after the last one, mean of each task's when it had just been learned)."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    body = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    keeper = Consolidation(body, 0.0 if way == "none" else STRENGTH)
    plugin, models, fresh = FisherPlugin(STRENGTH, "0.*"), [], []
    for classes in TASKS:
        x, y = task(train, classes)
        model = nn.Sequential(body, nn.Linear(32, len(classes)))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        experience = SimpleNamespace(dataset=TensorDataset(x, y))
        strategy = SimpleNamespace(model=model, experience=experience, _criterion=LOSS)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                losses = nn.functional.cross_entropy(model(x[batch]), y[batch], reduction="none")
                if way == "plugin, after a task":
                    strategy.loss = losses.mean()
                    plugin.before_backward(strategy)
                    strategy.loss.backward()
                else:
                    keeper.backward(losses, model)
                optimiser.step()
        if way == "plugin, after a task":
            plugin.after_training_exp(strategy)
        else:
            keeper.after_task()
        models.append(model)
        fresh.append(accuracy(model, task(test, classes)))
    last = [accuracy(m, task(test, classes)) for m, classes in zip(models, TASKS, strict=True)]
    return mean(last), mean(fresh)


def task(data: Data, classes: tuple[int, ...]) -> Data:
    """The images of some digits, with labels from 0."""
    x, y = only(data, classes)
    return x, y - classes[0]


def main() -> None:
    runs = [{way: learn(seed, way) for way in ROWS} for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Test accuracy in percent over {len(TASKS)} tasks, mean ± std, seeds: {len(runs)}")
    print(table(["stiffness", "all tasks, at the end", "each, just learned"], rows))
    (none, fresh), held, plugged = ([mean(column) for column in rows[way]] for way in ROWS)
    kept, paid = held[0] - none, fresh - held[1]
    print(
        f"\nConsolidation in the loop keeps {kept:.1f} points and costs {paid:.1f} of new tasks; ",
        end="",
    )
    print(f"the plugin {plugged[0] - none:.1f} and {fresh - plugged[1]:.1f}.")
    assert kept > 1 and paid < 3, "consolidation in the loop shows no benefit"
    assert plugged[0] > none + 1 and fresh - plugged[1] < 3, "the plugin shows no benefit"


if __name__ == "__main__":
    main()
