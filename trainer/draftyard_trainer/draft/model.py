"""The draft: a fusion of the target's states, one decoder layer, a head over the draft vocabulary.

Parameters have the names under which they are exported. The embedding is the target's, frozen, and no part of the
state: `attach_embedding` lends it. Files, losses and the unroll are elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.draft.attention import Chain, Documents, attend
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.layers import MLP, RMSNorm, Shared, SharedMLP, rotate

# N rows of a packed micro-batch, R rows of one step, A captured layers, H width, V target and D draft vocabulary,
# P = width of query, key and value together

INIT_STD = 0.02


class Attention(nn.Module):
    """Projections of the layer; its input is twice as wide as its output."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        width, size = 2 * config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * size, config.hidden_size, bias=False)


class Layer(nn.Module):
    """The one decoder layer, with two input norms: one for the embedding, one for the hidden state."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)


@dataclass(eq=False)
class UnrollState:
    """What one unroll carries from step to step: the step-0 keys and values of all rows, and each row's own chain."""

    documents: Documents
    hidden: Shared
    """The half of the query, key and value weights that reads the hidden state, `[P, H]`."""
    out: Shared
    """Weight behind attention."""
    mlp: SharedMLP
    key_Ngd: Tensor | None = None
    value_Ngd: Tensor | None = None
    chain: list[Chain] = field(default_factory=list)

    def narrow(self, kept: Tensor) -> None:
        """Go on with fewer rows: `kept` are their places among the rows of the last step."""
        self.chain = [Chain(link.keys, link.values, link.index[kept]) for link in self.chain]


class DraftModel(nn.Module):
    """One EAGLE-3 draft. `state_dict()` is what is exported and checkpointed."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(config.num_aux * config.target_hidden_size, config.hidden_size, bias=False)
        self.midlayer = Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        if config.fc_norm:
            norms = [RMSNorm(config.target_hidden_size, config.rms_norm_eps) for _ in config.aux_layers]
            self.fc_norm = nn.ModuleList(norms)
        if config.norm_before_fc:
            self.input_norm = RMSNorm(config.num_aux * config.target_hidden_size, config.rms_norm_eps)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        # In a tuple, so that the module does not take the target's tables for its own state.
        self._embedding: tuple[Tensor, ...] = ()
        self._rotary = (LlamaRotaryEmbedding(rope_config(config)),)

    # -- What it is made of -------------------------------------------------------------------

    def trained_parameters(self) -> list[nn.Parameter]:
        """Every parameter, in the order of the state dict."""
        return list(self.parameters())

    def attach_embedding(self, embedding_VH: Tensor) -> None:
        """Use the target's embedding table, frozen. It may stay on the CPU: rows are gathered there."""
        self._embedding = (embedding_VH.detach(),)

    def set_vocabulary(self, vocabulary: DraftVocabulary) -> None:
        """Fix the draft vocabulary: offsets `d2t` and membership `t2d`."""
        with torch.no_grad():
            self.d2t.copy_(torch.from_numpy(vocabulary.d2t()))
            self.t2d.copy_(torch.from_numpy(vocabulary.t2d()))

    def target_ids(self) -> Tensor:
        """Target id of each draft id, ascending, `[D]` int64."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def initialise(self, seed: int) -> None:
        """Fill all weights from the seed alone: linears normal(0, 0.02), norms 1.

        A head that starts as the target's rows learns slower: acceptance length 1.23 against 1.27 after 150 steps of
        1024 tokens, SmolLM2.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.empty(parameter.shape).normal_(0, INIT_STD, generator=generator))
                else:
                    parameter.fill_(1.0)

    # -- What it computes ---------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the target's embedding, in the draft's dtype and on its device."""
        (table_VH,) = self._embedding
        weight = self.fc.weight
        return F.embedding(ids.to(table_VH.device), table_VH).to(weight.device, weight.dtype)

    def fuse(self, aux: Tensor) -> Tensor:
        """The target's states `[.., A*Ht]` as the draft's first hidden state `[.., H]`."""
        aux = aux.to(self.fc.weight.dtype)
        if self.config.norm_before_fc:
            aux = self.input_norm(aux)
        if self.config.fc_norm:
            parts = aux.unflatten(-1, (self.config.num_aux, -1)).unbind(-2)
            aux = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        fused: Tensor = self.fc(aux)
        return fused

    def start(self, documents: Documents) -> UnrollState:
        """Begin an unroll. The weights are taken apart once, so that their gradients are put together once."""
        hidden_PH = torch.cat([weight[:, self.config.hidden_size :] for weight in self._projections()])
        layer = self.midlayer
        return UnrollState(documents, Shared.of(hidden_PH), Shared.of(layer.self_attn.o_proj.weight), layer.mlp.share())

    def project(self, embedded_NH: Tensor) -> Tensor:
        """What tokens give to query, key and value, `[N, P]`: the same at any step, so it is made once."""
        weight_PH = torch.cat([weight[:, : self.config.hidden_size] for weight in self._projections()])
        return F.linear(self.midlayer.input_layernorm(embedded_NH), weight_PH)

    def first_step(
        self, tokens_NP: Tensor, hidden_NH: Tensor, positions_N: Tensor, rows_R: Tensor, state: UnrollState
    ) -> Tensor:
        """Step 0: keys and values of all N rows, all else only for the rows `rows_R`. Returns hidden `[R, H]`.

        `tokens_NP` is `project` of each row's token.
        """
        query_width = self.config.num_attention_heads * self.config.head_dim
        widths = [query_width, tokens_NP.shape[1] - query_width]
        query_tokens_NP, key_tokens_NP = tokens_NP.split(widths, dim=1)
        query_PH, key_PH = state.hidden.weight.split(widths)
        normed_NH = self.midlayer.hidden_norm(hidden_NH)
        cos, sin = self._rope(positions_N)
        key, value = self._heads(torch.addmm(key_tokens_NP, normed_NH, key_PH.T)).chunk(2, dim=1)
        state.key_Ngd, state.value_Ngd = rotate(key, cos, sin), value
        normed_RH = select(normed_NH, rows_R)
        query = self._heads(torch.addmm(select(query_tokens_NP, rows_R), normed_RH, query_PH.T))
        residual_RH = self._residual(select(hidden_NH, rows_R))
        return self._finish(rotate(query, cos[rows_R], sin[rows_R]), residual_RH, rows_R, state)

    def next_step(
        self, tokens_RP: Tensor, hidden_RH: Tensor, positions_R: Tensor, rows_R: Tensor, state: UnrollState
    ) -> Tensor:
        """A later step of the rows `rows_R`, fed with the hidden states of the step before. Returns hidden `[R, H]`."""
        heads = self._heads(self.midlayer.hidden_norm.then_linear(hidden_RH, state.hidden, tokens_RP))
        queries, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        query_key, value = heads.split([queries + groups, groups], dim=1)
        query, key = rotate(query_key, *self._rope(positions_R)).split([queries, groups], dim=1)
        own = torch.arange(len(rows_R), device=rows_R.device)
        # A copy: a view would keep query and key from before their rotation, too.
        state.chain.append(Chain(key, value.contiguous(), own))
        return self._finish(query, self._residual(hidden_RH), rows_R, state)

    def carry(self, hidden_RH: Tensor) -> Tensor:
        """What one step hands to the next: its own output, not normed unless the profile says so."""
        normed: Tensor = self.norm(hidden_RH) if self.config.feed_normed_hidden else hidden_RH
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the draft vocabulary `[.., D]`."""
        scores: Tensor = self.lm_head(self.norm(hidden))
        return scores

    def _residual(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.midlayer.hidden_norm(hidden) if self.config.norm_before_residual else hidden
        return normed

    def _projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of query, key and value; each reads the embedding first, then the hidden state."""
        attention = self.midlayer.self_attn
        return attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight

    def _finish(self, query_Rhd: Tensor, residual_RH: Tensor, rows_R: Tensor, state: UnrollState) -> Tensor:
        """Attention and MLP with their residuals."""
        assert state.key_Ngd is not None
        assert state.value_Ngd is not None
        seen = attend(query_Rhd, state.key_Ngd, state.value_Ngd, rows_R, state.documents, state.chain)
        return state.mlp.plus(state.out.linear(seen.flatten(1), residual_RH), self.midlayer.post_attention_layernorm)

    def _heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (-1, self.config.head_dim))
        return heads

    def _rope(self, positions_R: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine `[R, 1, d]`, computed in fp32 by the same code as the engines' reference models.

        LongRoPE picks its factors by the longest position of a call: a long document would change its neighbours of a
        packed row, and the steps of one document would disagree. So the last position of the context is always asked
        for too: the choice is then one of the config, as in a server that decides by its context length.
        """
        (rotary,) = self._rotary
        weight = self.fc.weight
        rotary = rotary.to(weight.device)
        asked = torch.cat([positions_R, positions_R.new_tensor([self.config.max_position_embeddings - 1])])
        wide = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
        cos, sin = rotary(wide, asked[None])
        return cos[0, :-1, None], sin[0, :-1, None]


def select(tensor_N: Tensor, rows_R: Tensor) -> Tensor:
    """Some rows, ascending; all of them cost nothing."""
    return tensor_N if len(rows_R) == len(tensor_N) else tensor_N.index_select(0, rows_R)


def rope_config(config: DraftConfig) -> LlamaConfig:
    """A config that carries the rope settings to the library's rotary embedding."""
    parameters = {"rope_type": "default", "rope_theta": config.rope_theta, **(config.rope_scaling or {})}
    return LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=parameters,
    )
