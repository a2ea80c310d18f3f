"""Fills a masked word with a trained model: `tools/fill_mask.py STATE DATA SENTENCE`."""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from stacking.evaluate.mlm import load_model

state, data, sentence = sys.argv[1:]
tokenizer = Tokenizer.from_file(str(Path(data) / "tokenizer.json"))
ids = torch.tensor([tokenizer.encode(sentence).ids])
with torch.no_grad():
    scores, _ = load_model(Path(state)).eval().logits(ids, torch.zeros_like(ids), torch.ones_like(ids))
masked = ids[0].tolist().index(tokenizer.token_to_id("[MASK]"))
best = scores[0, masked].softmax(-1).topk(5)
print(f"\n{sentence}")
for share, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"  {share:6.1%}  {tokenizer.id_to_token(token)}")
