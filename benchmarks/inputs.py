"""Inputs that several benchmarks share: texts of a labeled file, random tokenizers and rows."""

import random

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

from corpus.column_choice import detect_text_column
from corpus.readers import read_file
from task import Task

BINARY_TASK = Task(("0", "1"), multi_label=False)
LETTERS = "abcdefghijklmnopqrstuvwxyzঅআইউএওকখগঘচছজটডতদনপবমযরলশসহািীুেো"
BERT_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_LENGTH = 128  # tokens


def read_texts(path: str) -> list[str]:
    """The texts of a labeled file, in file order and without blank ones."""
    table = read_file(path, "FILE")
    texts = table[detect_text_column(table)].to_pylist()
    return [text for text in texts if text and text.strip()]


def random_words(count: int) -> list[str]:
    """Distinct words of 3 to 9 random letters."""
    rng = random.Random(0)
    words: dict[str, None] = {}  # a dict is an ordered set
    while len(words) < count:
        word = "".join(rng.choices(LETTERS, k=rng.randint(3, 9)))
        words[word] = None
    return list(words)


def random_wordpiece(vocab_size: int) -> PreTrainedTokenizerFast:
    """A cased WordPiece tokenizer: letters, random words and random word endings (`##...`)."""
    tokens = [*BERT_SPECIAL_TOKENS.values(), *LETTERS]
    tokens += [f"##{letter}" for letter in LETTERS]
    for index, word in enumerate(random_words(vocab_size)):
        is_ending = index % 3 == 0
        tokens.append(f"##{word}" if is_ending else word)
    distinct = list(dict.fromkeys(tokens))[:vocab_size]
    ids = {token: token_id for token_id, token in enumerate(distinct)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=MAX_LENGTH, **BERT_SPECIAL_TOKENS
    )


def random_unigram(vocab_size: int) -> XLMRobertaTokenizer:
    """XLM-R's tokenizer (Unigram) with random pieces and scores."""
    rng = random.Random(1)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    for letter in LETTERS:
        pieces += [(letter, -12.0), (f"▁{letter}", -12.0)]
    for index, word in enumerate(random_words(vocab_size)):
        is_inside_word = index % 3 == 0
        piece = word if is_inside_word else f"▁{word}"
        pieces.append((piece, rng.uniform(-14, -7)))
    vocabulary = [*pieces[: vocab_size - 1], ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=MAX_LENGTH)


def random_splits(vocabulary: list[str], rows: int = 20_000) -> DatasetDict:
    """Training and validation rows of 5 to 25 words; a few thousand words are most of the text.

    The ranks of the words follow an exponential distribution with a mean of 3,000. All labels are
    0.
    """
    rng = random.Random(2)
    words = []
    for token in vocabulary:
        word = token.strip("▁")
        if word.isalpha():
            words.append(word)
    last_rank = len(words) - 1
    texts = []
    for _ in range(rows):
        length = rng.randint(5, 25)
        ranks = [int(rng.expovariate(1 / 3000)) for _ in range(length)]
        texts.append(" ".join(words[min(rank, last_rank)] for rank in ranks))
    train = Dataset.from_dict({"id": list(range(rows)), "text": texts, "label": [0] * rows})
    return DatasetDict(train=train, validation=train.select(range(rows // 10)))
