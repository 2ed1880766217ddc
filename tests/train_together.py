"""Train a tiny model without dropout in one process or in several, and save its weights.

`python tests/train_together.py DIRECTORY CSV`, or the same under `torchrun`;
tests/test_distributed.py compares the weights.
"""

import sys
from pathlib import Path

from transformers import AutoModelForSequenceClassification, BertConfig, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compression_config import Options
from data import load_splits
from encoders.scratch import train_wordpiece
from encoders.start import save_model
from runtime.distributed import join_processes, process_count
from trainer import training_settings
from training import hard_target_loss, train_

directory = Path(sys.argv[1])
splits, task, _ = load_splits(Options(dataset_path=sys.argv[2]))
# three full batches: the last shard of an incomplete one would be padded with repeated rows
splits["train"] = splits["train"].select(range(96))
options = Options(device="cpu", precision="fp32", batch=32, max_length=32)
join_processes("cpu")
set_seed(0)
tokenizer = train_wordpiece(splits["train"][:]["text"], options.max_length)
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
settings = training_settings(options, epochs=3, learning_rate=1e-3)
train_(model, tokenizer, splits, directory, settings, loss=hard_target_loss())
save_model(model, tokenizer, directory)
print(process_count(), "processes")
