"""Loads and saves models: decoders of transformers and their compressed forms, safetensors only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from budgeted_lora.config.anatomy import refuse_unknown
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_digest, read_json
from budgeted_lora.models.shards import weight_files

READ = 16  # tokens in a trial
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers' progress bars and warnings; `load_model` reports problems itself."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def mistral_config(
    *,
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int,
    vocab_size: int,
    context: int,
    end_id: int,
    head_dim: int | None = None,
    tied: bool = False,
) -> MistralConfig:
    """The paper's decoder at a given size: RMSNorm, RoPE with theta 10000, SwiGLU, untied embeddings, no biases."""
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
        tie_word_embeddings=tied,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=None,
        attention_dropout=0.0,
    )


def new_model(config: PretrainedConfig, *, seed: int) -> PreTrainedModel:
    """A float32 model whose random weights depend only on the seed; torch's global generator does not move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def load_model(
    folder: Path | str, *, dtype: torch.dtype | None = torch.float32, verify: bool = True
) -> PreTrainedModel:
    """A model from a local folder, in evaluation mode. Uses no network and runs no code from the folder.

    Args:
        dtype: of the weights in memory; None keeps that of the file.
        verify: whether to compare the checksum beside the folder, if any; one of several processes is enough.

    Raises:
        BadInput: no config, another family, no safetensors, a damaged file, or weights that do not fit the
            configuration (transformers would fill in missing ones at random).
    """
    from budgeted_lora.models.compressed import PREFIX  # registers the compressed classes

    folder = Path(folder)
    about = read_json(folder / "config.json", expected="a model folder")
    refuse_unknown(about | {"model_type": str(about.get("model_type")).removeprefix(PREFIX)}, where=folder)
    weight_files(folder)
    if verify:
        check_digest(folder)
    try:
        with quietly():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors and transformers raise many types if the folder is damaged
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from None
    surplus = [name for name in report["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq")]
    for what, names in {"weights missing": report["missing_keys"], "unexpected weights": surplus}.items():
        if names:
            some = ", ".join(sorted(names)[:3])
            raise BadInput(f"{folder}: {len(names)} {what} for the model that config.json describes ({some})")
    return model.eval()


def check_configuration(folder: Path) -> None:
    """Builds the model of a config.json without memory for its weights, and has it read a few tokens.

    Raises:
        BadInput: transformers refuses a value or cannot compute with it, which otherwise shows in a later job.
    """
    about = read_json(folder / "config.json", expected="the configuration of a checkpoint")
    try:
        with quietly(), torch.device("meta"), torch.no_grad():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
            model.eval()(input_ids=torch.zeros(1, READ, dtype=torch.long))
    except Exception as error:  # of many types, as from `load_model`
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{folder / 'config.json'}: no {about.get('model_type')} model can be made of it "
            f"({type(error).__name__}: {reason})"
        ) from None


def save_model(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes config.json and model.safetensors, with the weights converted to `dtype` if given."""
    if dtype is not None:
        model = model.to(dtype)
    with quietly():
        model.save_pretrained(folder, safe_serialization=True)
    # The teacher's own file, where it has one, is copied beside this (`checkpoint.copy_generation`); one made up from
    # config.json would only repeat it.
    (Path(folder) / "generation_config.json").unlink(missing_ok=True)


def embedding_rows(model_folder: Path) -> Any:
    """`vocab_size` of a checkpoint as it says it, a whole number where it is right; BadInput if there is none."""
    return read_json(Path(model_folder) / "config.json", expected="a model folder").get("vocab_size")


def check_vocabulary(model_folder: Path, *, vocab_size: int, what: str) -> None:
    """Checks that a checkpoint has an embedding for every token of `what`; it may have more (padding).

    Raises:
        BadInput: it has fewer, or there is no checkpoint.
    """
    size = embedding_rows(model_folder)
    if not isinstance(size, int) or size < vocab_size:
        raise BadInput(
            f"{model_folder}: vocabulary of {size}, but {what} has {vocab_size}; "
            "teacher, student and tokens must share one"
        )


def tied_names(model: PreTrainedModel) -> set[str]:
    """Names in the model's state of weights that are another one's: the output layer, if embeddings are tied."""
    return {HEAD} if model.get_output_embeddings().weight is model.get_input_embeddings().weight else set()


def own_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's state with each weight once, under the name that checkpoints have for it."""
    shared = tied_names(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
