"""Train a tiny model without dropout, alone or as one of several processes, and keep its weights.

`python tests/train_together.py FOLDER CSV`, or the same under `torchrun`; tests/test_ranks.py
compares the two.
"""

import sys
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForSequenceClassification, BertConfig, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compression_config import Options
from data import load_splits
from encoders.scratch import train_wordpiece
from encoders.start import save_model
from losses import hard_label_loss
from runtime.distributed import join_processes, process_count
from training import train_

folder, csv = Path(sys.argv[1]), sys.argv[2]
splits, task, _ = load_splits(Options(dataset_path=csv))
splits["train"] = splits["train"].select(
    range(96)
)  # whole batches: a part of one would be filled up
options = replace(Options(), device="cpu", precision="fp32", batch=32, max_length=32)
join_processes("cpu")
set_seed(0)
tokenizer = train_wordpiece(splits["train"][:]["text"], 32)
config = BertConfig(
    vocab_size=len(tokenizer),
    num_hidden_layers=1,
    hidden_size=64,
    num_attention_heads=1,
    intermediate_size=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    **task.config(),
)
model = AutoModelForSequenceClassification.from_config(config)
train_(
    model,
    tokenizer,
    splits,
    folder,
    options,
    epochs=3,
    lr=1e-3,
    loss=lambda logits, labels, _: hard_label_loss(logits, labels),
)
save_model(model, tokenizer, folder)
print(process_count(), "processes")
