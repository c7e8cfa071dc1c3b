"""transformers' models of the families, which our outputs are measured against. Slow to import."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


class Oracle:
    """One checkpoint in transformers, fp32, its plainest implementation of every part."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Read [T] ids at once, chunked; return logits [T, V] and the router's margins [T]."""
        if not hasattr(self._model.config, "num_experts"):  # dense
            logits = self._model(ids[None], use_cache=False).logits[0]
            return logits, torch.full((len(ids),), torch.inf)
        out = self._model(ids[None], use_cache=False, output_router_logits=True)
        return out.logits[0], self._router_margins(out.router_logits).expand(len(ids))

    @torch.no_grad()
    def greedy(self, prompt: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Read a prompt and choose `steps` tokens greedily, one at a time.

        Returns:
            All ids [prompt + steps], and the logits behind each choice [steps, V].
        """
        out = self._model(prompt[None], use_cache=True)
        ids, logits = prompt.tolist(), [out.logits[0, -1]]
        ids.append(int(logits[-1].argmax()))
        for _ in range(steps - 1):
            last = torch.tensor([ids[-1:]])
            out = self._model(last, past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0, -1])
            ids.append(int(logits[-1].argmax()))
        return torch.tensor(ids), torch.stack(logits)

    @torch.no_grad()
    def guess_with_mtp(self, ids: Tensor, guesses: int) -> tuple[Tensor, Tensor]:
        """Read [T] ids and let the MTP head guess on, greedily, behind all but the last.

        Returns:
            The logits of its guess of each token from the third on [T - 1, V], and those of the
            guesses that follow, each made from the one before [guesses, V].
        """
        config = self._model.config
        config.num_mtp_layers, config.mtp_layer_types = 1, ["full_attention"]
        head = MtpModel.from_pretrained(self._model).eval()
        cache = MtpCache(config=config.get_mtp_config())
        hidden = self._model.model(ids[None, :-1], use_cache=False).last_hidden_state
        positions = torch.arange(1, len(ids))[None]
        out = head.forward_layer(0, hidden, positions, cache, input_ids=ids[None, 1:])
        logits = self._model.lm_head(out)[0]
        chained = [logits[-1]]
        for _ in range(guesses - 1):
            positions, out = positions[:, -1:] + 1, out[:, -1:]
            guess = chained[-1].argmax()[None, None]
            out = head.forward_layer(0, out, positions, cache, input_ids=guess)
            chained.append(self._model.lm_head(out)[0, -1])
        return logits, torch.stack(chained)

    def _router_margins(self, router_logits: tuple[Tensor, ...] | None) -> Tensor:
        """Return per token by how much, over all layers, the last chosen expert beat the next."""
        top_k = self._model.config.num_experts_per_tok
        margins = []
        for layer in router_logits or ():
            if layer.shape[-1] > top_k:
                best = layer.topk(top_k + 1, dim=-1).values
                margins.append(best[:, -2] - best[:, -1])
        return torch.stack(margins).amin(0) if margins else torch.tensor(torch.inf)
