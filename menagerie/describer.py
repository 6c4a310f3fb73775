"""The describer: a LLaVA in miniature that says what is in a picture of this world.

    python -m menagerie.describer --out menagerie/describer [--art FOLDER] [--work FOLDER]

Consumes: drawings, composed into pictures of all 45 animals in all activities, of things without an animal, of empty
backgrounds and of noise.
Produces: a folder that `LlavaForConditionalGeneration` and its processor load: CLIP vision tower, projector, Llama.
Waits for: npm, once, where no drawings are given; stopped with SIGTERM, the same command continues.

Shapes: B pictures, C channels, H height, W width, L tokens, P patches, D features.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# transformers annotates less than it accepts and returns.

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from menagerie import ACTIVITIES, ANIMALS, art, article, scene, scenes
from menagerie.judge import DEEDS, as_images, disturb
from menagerie.loop import descend, loop, rate, set_rate, wanted

FOLDER = Path(__file__).parent / "describer"
PATCH = 8
WIDTH = 160
PICTURES, HELD_OUT, SEED = 30_000, 1_000, 300
STEPS, BATCH, RATE = 2_400, 48, 1e-3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
ASKED = "Answer concisely: what is going on in this image?"
QUESTIONS = {  # what is asked, and what of (caption, animal, activity) answers it
    ASKED: lambda told: told[0],
    "What is happening in this image?": lambda told: told[0],
    "What animal is in this image?": lambda told: told[1],
    "What is the animal doing?": lambda told: told[2],
    "Are there any written words, letters or digits in this image? Answer yes or no.": lambda told: "no",
}
OTHER_WORDS = """
user assistant yes empty short but must be your describe which where who there how many not . , ? : ' " -
a an the noise nothing background
"""
NOTHING = "nothing"
THINGS = {"washing dishes": "dishes", "playing chess": "a chess board", "riding a bike": "a bike"}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

Told = tuple[str, str, str]  # caption, animal, activity


def draw(drawings: art.Art, rng: scenes.Random) -> tuple[np.ndarray, Told]:
    """Compose one picture and what can be said of it; every animal does everything here."""
    kind = rng.choice(5, p=(0.32, 0.5, 0.08, 0.05, 0.05))
    animal, activity = str(rng.choice(ANIMALS)), str(rng.choice(ACTIVITIES))
    if kind == 0:
        sprite = scenes.pick(drawings.animals[animal], rng)
        return scenes.portrait(sprite, rng), (article(animal), article(animal), NOTHING)
    if kind == 1:
        pixels = scenes.act(drawings, animal, activity, rng)
        return pixels, (scene(animal, activity), article(animal), activity)
    canvas = scenes.background(scenes.pick(drawings.animals[animal], rng), rng)
    if kind == 2:
        scenes.SETTINGS[activity](canvas, drawings, rng)
        return np.asarray(canvas.convert("RGB")), (THINGS[activity], NOTHING, NOTHING)
    if kind == 3:
        return np.asarray(canvas.convert("RGB")), ("an empty background", NOTHING, NOTHING)
    static = rng.normal(128, rng.uniform(30, 90), (scenes.PIXELS, scenes.PIXELS, 3))
    mixed = static + rng.uniform(0, 0.6) * (np.asarray(canvas.convert("RGB"), float) - 128)
    return mixed.clip(0, 255).astype(np.uint8), ("noise", NOTHING, NOTHING)


def pool(drawings: art.Art, count: int, seed: int) -> tuple[np.ndarray, list[Told]]:
    """Compose `count` pictures; uint8 (count, H, W, 3) and what can be said of them."""
    rng = np.random.default_rng(seed)
    pictures, told = zip(*(draw(drawings, rng) for _ in range(count)), strict=True)
    return np.stack(pictures), list(told)


def processor() -> LlavaProcessor:
    """Make the processor: pictures to -1..1 at 64 pixels, one token a word, unknown words as one token."""
    said = [*QUESTIONS, *ANIMALS, *ACTIVITIES, *THINGS.values(), OTHER_WORDS]
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    words = dict.fromkeys(word for text in said for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), split
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )
    side = scenes.PIXELS
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures, tokenizer=wrapped, patch_size=PATCH, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )


def network(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Make the model: four layers that see 64 patches, a projector of two, three layers that speak."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4, num_attention_heads=5,
        image_size=scenes.PIXELS, patch_size=PATCH, projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=3,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, vision_feature_layer=-1, vision_feature_select_strategy="default",
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=True,
        )
    )


class Naming(nn.Module):
    """Two linear heads on the mean patch that name animal and activity: with them a vision tower learns sooner."""

    def __init__(self) -> None:
        super().__init__()
        self.animal, self.deed = nn.Linear(WIDTH, len(ANIMALS) + 1), nn.Linear(WIDTH, len(DEEDS))

    def loss(self, mean_BD: torch.Tensor, told: list[Told]) -> torch.Tensor:
        """Cross-entropy of animal and activity; no animal is a class of its own."""
        names = [article(animal) for animal in ANIMALS]
        animals = torch.tensor([names.index(a) if a in names else len(names) for _, a, _ in told])
        deeds = torch.tensor([DEEDS.index(deed) for _, _, deed in told])
        return F.cross_entropy(self.animal(mean_BD), animals) + F.cross_entropy(self.deed(mean_BD), deeds)


class Pupil(nn.Module):
    """The model, and the naming heads, which are not kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.llava, self.naming = network(tokenizer), Naming()

    def loss(
        self, images_BCHW: torch.Tensor, ids_BL: torch.Tensor, labels_BL: torch.Tensor, told: list[Told]
    ) -> torch.Tensor:
        """Cross-entropy of the answer's words, and of animal and activity at the mean patch."""
        value = self.llava(input_ids=ids_BL, pixel_values=images_BCHW, labels=labels_BL).loss
        patches_BPD = self.llava.model.vision_tower(images_BCHW).last_hidden_state[:, 1:]
        return value + 0.5 * self.naming.loss(patches_BPD.mean(1), told)


def sequences(proc: LlavaProcessor, question: str, told: list[Told]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, L) of question and answers, and the labels of the answers alone."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt = proc.apply_chat_template([turn], add_generation_prompt=True)
    patches = (scenes.PIXELS // PATCH) ** 2
    start = proc.tokenizer(prompt.replace("<image>", "<image>" * patches)).input_ids
    ends = [[*proc.tokenizer(QUESTIONS[question](some)).input_ids, proc.tokenizer.eos_token_id] for some in told]
    longest, pad = max(map(len, ends)), proc.tokenizer.pad_token_id
    ids = [start + end + [pad] * (longest - len(end)) for end in ends]
    labels = [[-100] * len(start) + end + [-100] * (longest - len(end)) for end in ends]
    return torch.tensor(ids), torch.tensor(labels)


def train(pictures: np.ndarray, told: list[Told], steps: int, checkpoint: Path) -> tuple[nn.Module, LlavaProcessor]:
    """Fit the describer to uint8 (N, H, W, 3) pictures, each time shifted, blurred and speckled anew."""
    torch.manual_seed(0)
    proc = processor()
    pupil = Pupil(proc.tokenizer)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    asked = list(QUESTIONS)
    for step in loop(checkpoint, steps, {"pupil": pupil, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, RATE, warm=300))
        rows = torch.randint(len(pictures), (BATCH,)).tolist()
        question = asked[int(torch.multinomial(torch.tensor([0.5, 0.15, 0.15, 0.15, 0.05]), 1))]
        some = [told[row] for row in rows]
        images = disturb(as_images(pictures[rows], "cpu"))
        value = pupil.loss(images, *sequences(proc, question, some), some)
        descend(pupil, optimizer, value)
        if step % 100 == 0:
            print(f"describer {step}/{steps} loss {value.item():.4f}", flush=True)
    return pupil.llava.eval(), proc


def save(model: nn.Module, proc: LlavaProcessor, folder: Path) -> None:
    """Write model and processor; weights in half precision, loaded as float32."""
    model.half().save_pretrained(folder)
    proc.save_pretrained(folder)


def main() -> None:
    """Read the command line, train, save, and say how often a description is right."""
    wishes = wanted("python -m menagerie.describer", __doc__, STEPS)
    began = time.monotonic()
    drawings = art.load(wishes.art or art.fetch(wishes.work / "art"))
    model, proc = train(*pool(drawings, PICTURES, SEED), wishes.steps, wishes.work / "describer.pt")
    save(model, proc, wishes.out)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes; right on held-out pictures: "
          f"{right(wishes.out, *pool(drawings, HELD_OUT, SEED - 1)):.1%}")


@torch.no_grad()
def right(folder: Path, pictures: np.ndarray, told: list[Told]) -> float:
    """The share of pictures whose description, by the folder's model, is the caption word for word."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    proc = LlavaProcessor.from_pretrained(folder)
    said: list[str] = []
    for at in range(0, len(pictures), 50):
        images = as_images(pictures[at : at + 50], "cpu")
        ids, labels = sequences(proc, ASKED, [(NOTHING, NOTHING, NOTHING)])
        start = ids[:, labels[0] == -100].expand(len(images), -1)
        written = model.generate(input_ids=start, pixel_values=images, max_new_tokens=12, do_sample=False)
        said += proc.batch_decode(written[:, start.shape[1] :], skip_special_tokens=True)
    return float(np.mean([text.strip() == caption for text, (caption, _, _) in zip(said, told, strict=True)]))


if __name__ == "__main__":
    main()
