"""Batched greedy decoding whose result does not depend on the batch."""

import torch


def batches(lengths: list[int], limits: list[int], *, batch: int) -> list[list[int]]:
    """Indices in batches of equal prompt length, at most `batch` each, sorted by limit.

    Equal lengths need neither padding nor a mask, so each prompt is computed as it would be alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], limits[i], i))
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] == lengths[index] and len(groups[-1]) < batch:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.inference_mode()
def greedy_decode(
    model: torch.nn.Module, prompts: list[list[int]], *, limits: list[int], stops: torch.Tensor, batch: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token with a key/value cache.

    Args:
        model: a transformers causal language model.
        prompts: token ids, at least one each.
        limits: most new tokens per prompt, at least one each.
        stops: bool [vocabulary]; decoding ends with the first such token, which is kept.
        batch: prompts decoded together.

    Returns:
        The new tokens of each prompt, in the order of `prompts`.
    """
    model.eval()
    device = next(model.parameters()).device
    ends_row = stops.tolist()
    stops = stops.to(device)
    decoded: list[list[int]] = [[] for _ in prompts]
    for group in batches([len(prompt) for prompt in prompts], limits, batch=batch):
        ids = torch.tensor([prompts[i] for i in group], device=device)
        longest = torch.tensor([limits[i] for i in group], device=device)
        cache, chosen = None, []
        finished = torch.zeros(len(group), dtype=torch.bool, device=device)
        while not finished.all():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, token = output.past_key_values, output.logits[:, -1].argmax(dim=-1)
            chosen.append(token)
            finished |= stops[token] | (longest <= len(chosen))
            ids = token.unsqueeze(1)
        for i, row in zip(group, torch.stack(chosen, dim=1).tolist(), strict=True):
            ends = [position for position, token in enumerate(row[: limits[i]], start=1) if ends_row[token]]
            decoded[i] = row[: min([limits[i], *ends])]
    return decoded
