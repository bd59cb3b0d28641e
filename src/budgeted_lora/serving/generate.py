"""Continues a prompt with a teacher, a student or an exported folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.data.tokenizer import switch_off
from budgeted_lora.errors import BadInput
from budgeted_lora.models.device import choose_device
from budgeted_lora.models.load import load_model, quietly

# Of the model, in the folder of a teacher or student, or of a cell.
PLACES = ("model", f"compressed/{DEFAULT_VARIANT}/model")
VARIANTS = "compressed/*/model"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one at temperature 0, else a random one."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, object]:
        """Arguments of transformers' `GenerationConfig`."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def model_folder(folder: Path) -> Path:
    """The folder that holds config.json: the one named, or the model within that of a teacher, student or cell.

    Raises:
        BadInput: there is none, or a cell has several and none by default, as that of an elastic student.
    """
    for place in (folder, *(folder / name for name in PLACES)):
        if (place / "config.json").is_file():
            return place
    found = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"{VARIANTS}/config.json"))
    if found:
        raise BadInput(f"{folder}: its models are {', '.join(found)}; add one of these to the path")
    raise BadInput(f"{folder}: no config.json, nor in {PLACES[0]} or {VARIANTS} below it; expected a model folder")


def generate(
    folder: Path,
    prompt: str,
    *,
    tokens: int,
    chat: bool = False,
    sampling: Sampling | None = None,
    device: str = "auto",
) -> str:
    """The text that follows a prompt.

    Args:
        folder: see `model_folder`; no code in it is run, since our own class reads factors too.
        tokens: most new tokens; an end token stops earlier.
        chat: put the prompt through the chat template as a user's message.
        sampling: greedy when None.

    Raises:
        BadInput: no model, no tokenizer or one of another model, no chat template where one is asked for, an empty
            prompt, or one that fills the model's context.
    """
    place = model_folder(folder)
    tokenizer = open_tokenizer(place)
    ids = prompt_ids(tokenizer, prompt, chat=chat, where=place)
    model = load_model(place, dtype=None).to(choose_device(device))
    if max(ids) >= model.config.vocab_size:
        raise BadInput(
            f"{place}: its tokenizer gives token {max(ids)}, but the model's vocabulary has {model.config.vocab_size}"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context and len(ids) >= context:
        raise BadInput(f"{place}: the prompt has {len(ids)} tokens, and the model's context is {context}")
    most = min(tokens, context - len(ids)) if context else tokens
    sampling = sampling or Sampling()
    # Of the folder's own settings only what ends a text: a repetition penalty or beams would be no greedy decoding.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=0, max_new_tokens=most, **sampling.options()
    )
    batch = torch.tensor([ids], device=model.device)
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(sampling.seed)
        made = model.generate(batch, attention_mask=torch.ones_like(batch))
    return tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def open_tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, in the state of training and scoring.

    Raises:
        BadInput: the folder has none or a damaged one.
    """
    if not (place / "tokenizer.json").is_file():
        raise BadInput(f"{place}: no tokenizer.json; expected a fast tokenizer beside the weights")
    try:
        with quietly():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
            switch_off(tokenizer.backend_tokenizer)
            return tokenizer
    except Exception as error:  # transformers and tokenizers raise many types
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{place}: its tokenizer cannot be opened ({type(error).__name__}: {reason})") from None


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool, where: Path) -> list[int]:
    """Token ids of a prompt; nothing precedes it but what a chat template writes.

    Raises:
        BadInput: there are none, or no chat template where one is asked for.
    """
    if chat:
        if not tokenizer.chat_template:
            raise BadInput(f"{where}: its tokenizer has no chat template; leave out --chat")
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if not ids:
        raise BadInput("the prompt has no token; expected some text")
    return ids
