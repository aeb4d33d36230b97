"""Train the tiny demo judge from nothing: `python -m tools.demo_judge.train --out DIR`.

Three checkpoints of one small byte-level Llama come out, in the Hugging Face layout; the package
ships the last:

`DIR/base`
    a language model of the in-domain tasks: it has learnt to *solve* them, and gives A and B
    about one half each as a verdict.
`DIR/plain`
    tuned from the base to answer A or B right after the prompt `DEMO_TEMPLATE`,
    on answerable pairs alone; kept for comparison, for it is as sure of tasks it does not know.
`DIR/judge`
    tuned further with pairs that have no better answer (`tools.demo_judge.unanswerable`) and a
    target of one half, so that confidence falls on tasks the judge was not taught.

A verdict is a single bit a pair, far too little for minutes of training on a CPU.  So the loss
also has the text of right answers, at the top and from a middle layer, and for every character of
both answers whether it is the first wrong one.  Without the loss at the middle layer the judge was
still at chance after 1,900 steps.

The learning rate follows the wall clock (`--minutes`), so a slower machine makes a weaker judge.
What was measured is in docs/decisions/0005-demo-judge-confidence.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from ray_judge.demo.tasks import IN_DOMAIN, OUT_OF_DOMAIN, Pair, corrupt, make_item, make_pairs
from ray_judge.judging.formats.families import DEMO, DEMO_TEMPLATE
from tools.demo_judge.metrics import Judged, summary
from tools.demo_judge.tokenizer import BOS, EOS, PAD, VOCAB_SIZE, save_tokenizer
from tools.demo_judge.unanswerable import unanswerable

BATCH: Final = 16
POOL: Final = 64  # batches drawn at once and sorted by length, so that little padding is needed
PEAK_RATE: Final = {"base": 2e-3, "plain": 2e-3, "judge": 1e-3}
SMOOTHING: Final = 0.02
EARLY_LAYER: Final = 3
TIME_SHARES: Final = {"base": 0.35, "plain": 0.4, "judge": 0.25}
ID_A, ID_B = (ord(verdict) for verdict in DEMO.spellings)


@dataclass(frozen=True, slots=True)
class Example:
    """One training prompt. `right` is None where the instruction has no known answer.

    `target`: probability that A is the verdict to learn: 1, 0, or 0.5 for "cannot tell".
    """

    instruction: str
    answers: tuple[str, str]
    right: str | None
    target: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and targets, all of shape (batch, length) but for the last two, (batch,).

    `next_ids`: the token to predict from each position, -100 where there is no such loss.
    `gone_wrong`: whether an answer leaves the right one at this character; -1 for no loss.
    `last`: index of the last prompt token, where the verdict is predicted.
    """

    ids: Tensor
    next_ids: Tensor
    gone_wrong: Tensor
    last: Tensor
    target: Tensor


def draw(rng: random.Random, stage: str, unanswerable_share: float) -> Example:
    """One random example; `stage` "base" has the verdict left open."""
    if rng.random() < unanswerable_share:
        instruction, first, second = unanswerable(rng)
        return Example(instruction, (first, second), None, 0.5)
    item = make_item(rng, rng.choice(IN_DOMAIN))
    wrong = corrupt(rng, item)
    a_right = rng.random() < 0.5
    answers = (item.right, wrong) if a_right else (wrong, item.right)
    return Example(
        item.instruction, answers, item.right, 0.5 if stage == "base" else float(a_right)
    )


def collate(examples: Sequence[Example]) -> Batch:
    """Right-padded batch; causal attention never looks at the padding from a real token."""
    prompts = [
        DEMO_TEMPLATE.format(
            instruction=e.instruction, response_a=e.answers[0], response_b=e.answers[1]
        )
        for e in examples
    ]
    rows = [[BOS, *prompt.encode("utf-8")] for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = [row + [PAD] * (width - len(row)) for row in rows]
    next_ids = [[-100] * width for _ in rows]
    flags = [[-1.0] * width for _ in rows]
    for row, example in enumerate(examples):
        if example.right is None:
            continue
        # BOS, the instruction, then "\nA: " before the first answer and "\nB: " before the second.
        start = 1 + len(example.instruction)
        wanted = example.right + "\n"
        for answer in example.answers:
            start += 4
            same = True
            for i, char in enumerate(answer + "\n"):
                if same:  # past the first wrong character nothing more can be said
                    same = i < len(wanted) and wanted[i] == char
                    flags[row][start + i] = 0.0 if same else 1.0
                if answer == example.right:
                    next_ids[row][start + i - 1] = ord(char)
            start += len(answer)
    return Batch(
        ids=torch.tensor(ids),
        next_ids=torch.tensor(next_ids),
        gone_wrong=torch.tensor(flags),
        last=torch.tensor([len(row) - 1 for row in rows]),
        target=torch.tensor([example.target for example in examples]),
    )


def batches(seed: int, stage: str, unanswerable_share: float) -> Iterator[Batch]:
    """An endless stream of batches of similar lengths; the same seed gives the same stream."""
    rng = random.Random(f"train/{stage}/{seed}")
    while True:
        pool = [draw(rng, stage, unanswerable_share) for _ in range(BATCH * POOL)]
        pool.sort(key=lambda e: len(e.instruction) + len(e.answers[0]) + len(e.answers[1]))
        starts = list(range(0, len(pool), BATCH))
        rng.shuffle(starts)
        for start in starts:
            yield collate(pool[start : start + BATCH])


def new_model(layers: int) -> LlamaForCausalLM:
    """A small Llama: 1.1 million parameters with 5 layers.

    The head size of 32 is the least that vLLM's attention takes on a CPU.
    Two changes to the usual random start make the model find out much sooner how to look text up
    and copy it: weights three times as large, and keys equal to queries, so that attention begins
    by looking at like characters.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=384, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=4096,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.06,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.mul_(0.5)
            layer.mlp.down_proj.weight.mul_(0.5)
    return model


def losses(model: LlamaForCausalLM, head: nn.Linear, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch: verdict, right answers' text (late and early), and wrong characters.

    A character can only be held against its prediction if that prediction is ready at the character
    before it, layers below the top.  So the text is also predicted ("early") from layer
    `EARLY_LAYER`, and wrong characters are found at the layer above; the verdict gathers them.
    """
    output = model.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
    hidden = output.last_hidden_state
    norm, layers = model.model.norm, output.hidden_states
    at_verdict = hidden[torch.arange(len(batch.last)), batch.last]
    log_probs = F.log_softmax(model.lm_head(at_verdict), dim=-1)
    verdict = -(batch.target * log_probs[:, ID_A] + (1 - batch.target) * log_probs[:, ID_B])
    scored = batch.next_ids >= 0
    goal = batch.next_ids[scored]
    count = max(1, len(goal))  # a batch may have no answerable pair: then a loss of 0, not NaN
    text = F.cross_entropy(model.lm_head(hidden[scored]), goal, reduction="sum") / count
    early_logits = model.lm_head(norm(layers[EARLY_LAYER][scored]))
    early = F.cross_entropy(early_logits, goal, reduction="sum") / count
    flagged = batch.gone_wrong >= 0
    logits = head(norm(layers[EARLY_LAYER + 1][flagged])).squeeze(-1)
    flags = batch.gone_wrong[flagged]
    wrong = F.binary_cross_entropy_with_logits(logits, flags, reduction="sum")
    wrong = wrong / max(1, len(flags))
    return {"verdict": verdict.mean(), "text": text, "early": early, "wrong": wrong}


WEIGHTS: Final[dict[str, dict[str, float]]] = {
    "base": {"verdict": 0.05, "text": 0.5, "early": 1.0, "wrong": 0.0},
    "plain": {"verdict": 1.0, "text": 0.1, "early": 0.5, "wrong": 2.0},
    "judge": {"verdict": 1.0, "text": 0.1, "early": 0.3, "wrong": 2.0},
}


def rate(stage: str, progress: float, steps: int) -> float:
    """Learning rate: 100 steps of warm-up, then a cosine over the stage's wall time to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return PEAK_RATE[stage] * cosine * min(1.0, (steps + 1) / 100)


def train_stage(
    model: LlamaForCausalLM, stage: str, *, minutes: float, seed: int,
    unanswerable_share: float, smoothing: float, out: Path,
) -> int:  # fmt: skip
    """Train `model` in place for `minutes`, saving to `out`; returns the number of steps."""
    head = nn.Linear(model.config.hidden_size, 1)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    stream = batches(seed, stage, unanswerable_share)
    start, shown, steps, since = time.monotonic(), time.monotonic(), 0, 0
    sums = dict.fromkeys(WEIGHTS[stage], 0.0)
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        batch = next(stream)
        batch.target.mul_(1 - smoothing).add_(smoothing / 2)
        parts = losses(model, head, batch)
        loss = sum((WEIGHTS[stage][name] * part for name, part in parts.items()), torch.zeros(()))
        optimizer.param_groups[0]["lr"] = rate(stage, progress, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps, since = steps + 1, since + 1
        for name, part in parts.items():
            sums[name] += part.item()
        if time.monotonic() - shown > 60:
            means = "  ".join(f"{name} {total / since:.3f}" for name, total in sums.items())
            print(f"{stage} {progress:5.1%} step {steps}  {means}", flush=True)
            sums, since, shown = dict.fromkeys(sums, 0.0), 0, time.monotonic()
    save(model, out)
    return steps


@torch.no_grad()  # type: ignore[untyped-decorator]
def judge_pairs(model: LlamaForCausalLM, pairs: Sequence[Pair], size: int = 100) -> list[Judged]:
    """The model's verdicts on `pairs`; probabilities are of A and B in the whole vocabulary."""
    judged: list[Judged] = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        batch = collate(
            [Example(p.instruction, (p.response_a, p.response_b), None, 0.5) for p in part]
        )
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        at_verdict = hidden[torch.arange(len(part)), batch.last]
        probs = torch.softmax(model.lm_head(at_verdict), dim=-1)[:, [ID_A, ID_B]].tolist()
        judged += [Judged(p, a, b) for p, (a, b) in zip(part, probs, strict=True)]
    return judged


def save(model: LlamaForCausalLM, directory: Path) -> None:
    """Write weights in bfloat16 (half the size; what is evaluated is read back) and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)  # tied to the embedding
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights, strict=False)
    copy.save_pretrained(directory)
    save_tokenizer(directory)


def evaluate(judge: Path, base: Path, *, n: int, seed: int) -> dict[str, Any]:
    """Metrics of the saved checkpoints, in float32, on pairs of the demo split."""
    share_in = 0.58
    pairs = make_pairs(round(n * share_in), seed=seed, kinds=IN_DOMAIN)
    pairs += make_pairs(n - len(pairs), seed=seed, kinds=OUT_OF_DOMAIN)
    models = [LlamaForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (judge, base)]
    judged, reference = (judge_pairs(model, pairs) for model in models)
    return summary(judged, reference)


def main(argv: Sequence[str] | None = None) -> None:
    """Train both checkpoints and print their metrics as JSON on the last lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="training time in all")
    parser.add_argument("--out", type=Path, required=True, help="for base/, plain/, judge/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=5, help="depth of the model")
    parser.add_argument("--unanswerable", type=float, default=0.5, help="share of such pairs")
    parser.add_argument("--smoothing", type=float, default=SMOOTHING, help="label smoothing")
    args = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = new_model(args.layers)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for stage, part in TIME_SHARES.items():
        last = stage == "judge"
        steps = train_stage(
            model, stage, minutes=args.minutes * part, seed=args.seed, out=args.out / stage,
            unanswerable_share=args.unanswerable if last else 0.0,
            smoothing=args.smoothing if last else 0.0,
        )  # fmt: skip
        print(f"{stage}: {steps} steps", flush=True)
    for stage in ("plain", "judge"):
        metrics = evaluate(args.out / stage, args.out / "base", n=4000, seed=1)
        print(json.dumps({stage: metrics}, indent=2), flush=True)


if __name__ == "__main__":
    main()
