"""Fine-tune with Hugging Face's ``Trainer`` and keep what was known: elastic weight consolidation as a callback.

    python examples/trainer_callback.py            (--seeds 1 for a quick look; pip install transformers accelerate)

A small GPT-2, configured here and trained from scratch, reads Python's help texts and then the same in capitals. The
callback adds the force of a spring to each gradient before the optimiser's step, as stiff as the Fisher diagonal of
the first text is there, and takes that diagonal when a training ends: one pass over the training's own loader. It
replaces a subclass of ``Trainer`` whose ``compute_loss`` adds the penalty to the graph of every step:

    class Penalised(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = super().compute_loss(model, inputs, **kwargs)
            for name, p in model.named_parameters():
                loss = loss + self.strength / 2 * (self.fisher[name] * (p - self.star[name]) ** 2).sum()

and, for ``self.fisher``, a backward pass for each text. Any quantity of a risk can be asked for in the same places:
``model`` and ``train_dataloader`` are what ``cx.EmpiricalRisk`` takes.
"""

import tempfile
from statistics import mean

import torch
from text import LOSS, VOCABULARY, prose, windows
from torch import Tensor, nn
from training import by_row, seeds, table
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

import curvext as cx

LENGTH, TEXTS, BATCH = 32, 512, 32
STEPS = (120, 60)  # on prose, on capitals
ROWS = {"nothing": 0.0, "consolidation": 30.0}  # and λ


class Consolidation(TrainerCallback):
    """Holds each weight by what the trainings before need of it.

    Args:
        strength: λ of λ/2 Σ_i F_i (θ_i − θ*_i)².
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.tasks: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []  # (F, θ*)

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        """Adds the springs' gradient, λ F (θ − θ*)."""
        for fisher, star in self.tasks:
            for name, p in model.named_parameters():
                p.grad += self.strength * fisher[name] * (p.detach() - star[name])

    def on_train_end(self, args, state, control, model, train_dataloader, **kwargs) -> None:
        """Takes the Fisher diagonal of what has just been learned."""
        model.eval()  # dropout has no Fisher matrix
        fisher = cx.fisher_diagonal(model, LOSS, train_dataloader, kind="mc")
        star = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.tasks.append((fisher, star))


def fine_tuned(model: nn.Module, texts: Tensor, steps: int, seed: int, callback: Consolidation):
    """Trains ``model`` in place by a plain ``Trainer``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data = [{"input_ids": text, "labels": text} for text in texts]
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def loss_on(model: nn.Module, texts: Tensor) -> float:
    """The mean −log p of a character, in nats."""
    with torch.no_grad():
        return float(LOSS(model.eval()(texts).logits, texts))


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{held by: the losses of held-out prose, before and after capitals were learned, and of capitals}."""
    draw = torch.Generator().manual_seed(seed)
    first, second = (_halves(text, draw) for text in (prose(), prose(capitals=True)))
    found = {}
    for name, strength in ROWS.items():
        torch.manual_seed(seed)
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": LENGTH}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **ends))
        callback = Consolidation(strength)
        fine_tuned(model, first[0], STEPS[0], seed, callback)
        before = loss_on(model, first[1])
        fine_tuned(model, second[0], STEPS[1], seed, callback)
        found[name] = (before, loss_on(model, first[1]), loss_on(model, second[1]))
    return found


def _halves(text: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows to train on, and windows of what comes after them in the text."""
    cut = 4 * len(text) // 5
    return windows(text[:cut], TEXTS, LENGTH, draw), windows(text[cut:], 256, LENGTH, draw)


def main() -> None:
    logging.set_verbosity_error()  # "loss_type=None was set in the config", which nobody did
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Loss in nats for each character of held-out text, mean ± std, seeds: {len(runs)}")
    print(table(["held by", "prose, before", "prose, after", "capitals, after"], rows))
    free, held = ([mean(column) for column in row] for row in rows.values())
    kept, paid = free[1] - held[1], held[2] - free[2]
    print(f"\nThe callback keeps {kept:.2f} nats of prose and costs {paid:.2f} of capitals.")
    assert kept > 0.1 and paid < kept, "consolidation in a callback shows no benefit"


if __name__ == "__main__":
    main()
