"""Hugging Face's Trainer and peft's adapters, as docs/lora_and_trainer.md says; skipped where they are missing."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import curvext as cx

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is their affair

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

BOUND, RATE = 0.5, 0.1


def language_model():
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 12}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout, **ends))


def losses_of(model, tokens):
    logits = model(input_ids=tokens).logits[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(1)


def clip(norms):
    return (BOUND / norms).clamp(max=1) / len(norms)


def trained(model, tokens, folder, kind=None, callbacks=(), steps=1):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=len(tokens),
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": t, "labels": t} for t in tokens]
    trainer = (kind or transformers.Trainer)(
        model, arguments, train_dataset=data, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


def test_a_training_step_by_backward_takes_clipped_gradients(tmp_path):
    class Clipped(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            losses = losses_of(model, self._prepare_inputs(inputs)["input_ids"])
            cx.backward(losses, model, weights=clip)
            return losses.detach().mean()

    model, tokens = language_model(), torch.randint(40, (6, 12))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = []
    for n in range(len(tokens)):
        model.zero_grad()
        losses_of(model, tokens[n : n + 1]).sum().backward()
        rows.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    norms = torch.stack([torch.stack([g.norm() for g in row.values()]).norm() for row in rows])
    assert norms.min() < norms.max() and norms.max() > BOUND
    trained(model, tokens, tmp_path, Clipped)
    for name, p in model.named_parameters():
        step = sum(w * row[name] for w, row in zip(clip(norms), rows, strict=True))
        torch.testing.assert_close(p.detach(), before[name] - RATE * step, rtol=1e-5, atol=1e-6)


def test_a_callback_has_the_fisher_diagonal_of_the_trainers_own_loader(tmp_path):
    class AtTheEnd(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, model, train_dataloader, **kwargs):
            self.found = cx.fisher_diagonal(model.eval(), cx.CausalLMLoss(), train_dataloader)

    model, tokens, callback = language_model(), torch.randint(40, (6, 12)), AtTheEnd()
    trained(model, tokens, tmp_path, callbacks=[callback], steps=2)
    expected = cx.fisher_diagonal(model, cx.CausalLMLoss(), {"input_ids": tokens, "labels": tokens})
    for name, value in expected.items():
        torch.testing.assert_close(callback.found[name], value, rtol=1e-4, atol=1e-8)


def test_the_adapters_of_peft_are_all_that_a_risk_sees():
    peft = pytest.importorskip("peft")
    tokens = torch.randint(40, (6, 12))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True)
    model = peft.get_peft_model(language_model(), config).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    batch = {"input_ids": tokens, "labels": tokens}
    E = cx.EmpiricalFisherOperator(model, cx.CausalLMLoss(), batch)
    assert E.param_shapes and all("lora_" in name for name in E.param_shapes)
    expected = []
    for n in range(len(tokens)):
        model.zero_grad()
        losses_of(model, tokens[n : n + 1]).sum().backward()
        found = [p.grad for p in model.parameters() if p.requires_grad]
        expected.append(torch.stack([g.norm() for g in found]).norm())
    torch.testing.assert_close(E.gradient_norms(), torch.stack(expected), rtol=1e-4, atol=1e-7)
