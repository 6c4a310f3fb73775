"""The tokenizer: byte-level BPE in CLIP's manner, small, yet defined for any text.

Consumes: `WORDS`, the vocabulary of the prompts that the house's recipes use.
Produces: a `CLIPTokenizer` that gives every one of these words a token of its own.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer

from menagerie import ANIMALS

LENGTH = 24  # tokens of a prompt, with the two at its ends

UNSEEN = """
elephant giraffe hippopotamus rhinoceros ostrich penguin seal otter walrus chimpanzee orangutan koala platypus
crocodile alligator komodo dragon anaconda octopus squid lobster crab jellyfish starfish seahorse pelican flamingo
toucan parrot peacock skunk badger porcupine armadillo sloth beaver moose reindeer shoebill stork
"""
OBJECTS = """
toaster chair car coffee cup refrigerator lamp television sofa computer smartphone bicycle table bookshelf clock
microwave blender vacuum cleaner iron washing machine dryer oven dishwasher mirror picture frame trash can plant pot
water bottle backpack umbrella sunglasses wallet keychain pen pencil notebook stapler scissors tape dispenser
calculator eraser ruler glue stick highlighter marker post it notes envelope stamp key skull flower
"""
COMMON = """
a an the and or of in on at by to with under over near next behind is are one two three four five six seven eight
washing dishes playing chess riding bike bicycle dish board horse ball game tree house red orange yellow green blue
purple pink brown black white grey big small cute happy photo drawing cartoon image emoji background person man woman
animal animals cats dogs sitting standing running eating sleeping reading cooking dancing flying swimming
"""
WORDS = tuple(dict.fromkeys([*ANIMALS, *(COMMON + UNSEEN + OBJECTS).split()]))

END = "</w>"


def build() -> CLIPTokenizer:
    """Make the tokenizer: 256 bytes, the same at a word's end, the merges, and CLIP's two special tokens."""
    letters = byte_letters()
    merges = learn(WORDS)
    tokens = [*letters, *(letter + END for letter in letters), *(left + right for left, right in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def byte_letters() -> list[str]:
    """List the printable stand-ins of the 256 bytes, as GPT-2 defined them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in plain)
    stand_ins = dict(zip(others, range(256, 512), strict=False)) | {byte: byte for byte in plain}
    return [chr(stand_ins[byte]) for byte in range(256)]


def learn(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merge the most frequent pair, the alphabetically first among equals, until every word is one token."""
    pieces = [[*word[:-1], word[-1] + END] for word in words]
    merges = []
    while pairs := Counter(pair for piece in pieces for pair in pairwise(piece)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [merge(piece, best) for piece in pieces]
    return merges


def merge(piece: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of the pair in a word's pieces."""
    joined: list[str] = []
    for part in piece:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
