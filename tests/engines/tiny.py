"""Tiny models of Llama's architecture with random weights, and formats that read them.

Random weights say nothing about language, but everything about arithmetic: what vLLM gives must be
what a whole-vocabulary softmax in float32 gives, whatever the weights are.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ray_judge.config import JudgeConfig
from ray_judge.judging.formats import Format, Parsed
from ray_judge.judging.formats.format import AnswerForm
from ray_judge.records import Example, Task

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
CONTEXT = 2048
WORDS = (
    "the answer response is better because it reads well and gives more detail than question "
    "score rating final decision tie Response 1 Response 2 8 7 10 9 A B"
).split()


def make_tokenizer(*, split_digits: bool) -> Any:
    """A byte-level BPE tokenizer; `10` is two tokens, or one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    text = [" ".join(random.Random(n).choices(WORDS, k=200)) for n in range(20)]
    tokenizer.train_from_iterator([*text, "10 10 10\n10\n8 10\n"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": CONTEXT,
}  # fmt: skip


def save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(folder: Path, seed: int, *, split_digits: bool = True, chat: bool = False) -> Path:
    """Save a model and its tokenizer. Its head is scaled up, so that it has opinions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(split_digits=split_digits)
    tokenizer.chat_template = CHAT if chat else None
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False, **SIZES,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return save(folder, model, tokenizer)


THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A chat template with Qwen3's switch, and its empty block in front of an answer that is given."""


def make_thinker(folder: Path) -> Path:
    """Save a model of Qwen3's architecture that gives a verdict behind an empty block of
    reasoning, and says something else where there is none. Only its head has learnt that.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from ray_judge.judging.formats import format_for

    tokenizer = make_tokenizer(split_digits=True)
    tokenizer.chat_template = THINKING
    tokenizer.add_tokens(["<think>", "</think>", "<|im_start|>", "<|im_end|>"])
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
        **SIZES,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).float()
    states, signs = [], []
    shown = format_for(JudgeConfig(model="m"), "pairwise")
    for example in examples(20, "pairwise", seed=9, longest=60):
        for sign, switch in ((1.0, False), (-1.0, True)):
            text = tokenizer.apply_chat_template(
                shown.render(example).messages(), tokenize=False, add_generation_prompt=True,
                enable_thinking=switch,
            )  # fmt: skip
            ids = tokenizer.encode(text + "Verdict:", add_special_tokens=False)
            with torch.inference_mode():
                states.append(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
            signs.append(sign)
    known, wanted = torch.stack(states), torch.tensor(signs)
    with torch.no_grad():  # the one direction that tells them apart, by ridge regression
        square = known.T @ known + 0.1 * torch.eye(128)
        direction = 20 * torch.linalg.solve(square, known.T @ wanted)
        model.lm_head.weight.zero_()
        for name, sign in ((" A", 1), ("x", -1)):
            (token,) = tokenizer.encode(name, add_special_tokens=False)
            model.lm_head.weight[token] = sign * direction
    return save(folder, model, tokenizer)


def make_reward(folder: Path, seed: int, kind: str = "Llama", labels: int = 1) -> Path:
    """Save a reward model of Llama's or Qwen3's architecture, and its tokenizer with a template."""
    import torch
    import transformers

    tokenizer = make_tokenizer(split_digits=True)
    tokenizer.chat_template = CHAT.replace("\n", tokenizer.eos_token)  # which fills up batches, too
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=labels, **SIZES
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).float()
    with torch.no_grad():
        model.score.weight.mul_(12)
    return save(folder, model, tokenizer)


def make_misfits(folder: Path) -> Path:
    """Beside a `whole` model others: `headless`, a reward model that says that it writes text;
    `strange`, of a kind that nobody knows; `tied`, whose head is its embeddings.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    whole = make_model(folder / "whole", 1)
    for name in ("headless", "strange", "tied"):
        shutil.copytree(whole, folder / name)
    config = LlamaConfig.from_pretrained(whole, num_labels=1)
    LlamaForSequenceClassification(config).to(torch.float32).save_pretrained(folder / "headless")
    config = LlamaConfig.from_pretrained(whole, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder / "tied")
    edit(folder / "headless", architectures=["LlamaForCausalLM"])
    edit(folder / "strange", architectures=["StrangeForCausalLM"], model_type="strange")
    return folder


def edit(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@dataclass(frozen=True)
class Lines:
    def fill(self, example: Example, rubric: str) -> str:
        return "\n".join((example.instruction, *example.responses)) + "\nVerdict:"


@dataclass(frozen=True)
class Anywhere(AnswerForm):
    """Answers that a random model does give: any of them has a verdict somewhere."""

    at: int | None
    """decode: full: the verdict is taken to stand behind so many characters."""

    def parse(self, answer: str) -> Parsed:
        if self.at is None or len(answer) < self.at:
            return Parsed(None, reason="the answer is too short")
        return Parsed(next(iter(self.spellings)), start=self.at)


def make(task: Task, spellings: Mapping[str, tuple[str, ...]], at: int | None = None,
         **changes: Any) -> Format:  # fmt: skip
    options: dict[str, Any] = {"chat": False, "max_output_tokens": 12, **changes}
    meant = {text: name for name, texts in spellings.items() for text in texts}
    return Format(task, Lines(), Anywhere(meant, at, leads=("",)), **options)


def letters(**changes: Any) -> Format:
    return make("pairwise", {"A": ("A", " A"), "B": ("B", " B")}, **changes)


def phrases(**changes: Any) -> Format:
    """Alternatives of several tokens that begin alike; decode: full has no forced opening."""
    spellings = {"A": (" Response 1",), "B": (" Response 2",), "tie": (" Tie", " tie")}
    opening = " So, the decision is" if changes.get("at") is None else ""
    return make("pairwise", spellings, opening=opening, **changes)


def scores() -> Format:
    """1 to 10, where the one begins the other."""
    return make("pointwise", {str(n): (f"{n}", f" {n}") for n in range(1, 11)})


def two_scores() -> Format:
    """JudgeLM's way: 100 spellings of A, B and tie."""
    found: dict[str, list[str]] = {"A": [], "B": [], "tie": []}
    for first in range(1, 11):
        for second in range(1, 11):
            name = "A" if first > second else "B" if second > first else "tie"
            found[name] += [f"{first} {second}", f" {first} {second}"]
    return make("pairwise", {k: tuple(v) for k, v in found.items()})


def examples(count: int, task: Task, seed: int = 0, longest: int = 1400) -> list[Example]:
    """Random texts, so that prompts have 20 to some 1,500 tokens."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        size = int(2 ** rng.uniform(3, 10.3))
        words = [rng.choice(WORDS) for _ in range(min(size, longest))]
        text = " ".join(words)
        third = len(text) // 3
        parts = (text[:third] or "x", text[third : 2 * third] or "y", text[2 * third :] or "z")
        made.append(Example(parts[0], parts[1:] if task == "pairwise" else (parts[2],)))
    return made


def judge(model: Path, **changes: Any) -> JudgeConfig:
    return JudgeConfig(model=str(model), dtype="float32", **changes)
