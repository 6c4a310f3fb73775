"""A CLIP in miniature: pictures of this world and what can be said of them, as vectors in one space.

    python -m menagerie.clip --out menagerie/clip [--art FOLDER] [--work FOLDER]

Consumes: drawings, composed into the describer's pictures; captions now and then without article, now and then with the
background's colour, so that the vectors know more of a picture than who does what in it.
Produces: a folder that `CLIPModel` and its processor load.
Waits for: npm, once, where no drawings are given; stopped with SIGTERM, the same command continues.

Shapes: B pictures and their texts, C channels, H height, W width, L tokens, D features.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# transformers annotates less than it accepts and returns.

import colorsys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from menagerie import ACTIVITIES, ANIMALS, art, article, scene, scenes, tokenizer
from menagerie.describer import PATCH, WIDTH, Naming, Told, pool
from menagerie.judge import as_images, disturb
from menagerie.loop import descend, loop, rate, set_rate, wanted

FOLDER = Path(__file__).parent / "clip"
TEXT, SHARED = 96, 128  # features of a word, features of picture and text
PICTURES, HELD_OUT, SEED = 30_000, 1_000, 400
STEPS, BATCH, RATE = 3_000, 64, 1e-3
SHARPEST = 100.0  # of the logit scale, as in CLIP
CAPTIONS = tuple([article(a) for a in ANIMALS] + [scene(a, deed) for a in ANIMALS for deed in ACTIVITIES])
HUES = ("red", "orange", "yellow", "green", "green", "green", "blue", "blue", "blue", "purple", "purple", "pink")
FRAME = 3  # pixels at the edge whose mean colour is the background's


def processor() -> CLIPProcessor:
    """Make the processor: pictures to -1..1 at 64 pixels, menagerie's own tokens."""
    side = scenes.PIXELS
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tokenizer.build())


def network(words: tokenizer.CLIPTokenizer) -> CLIPModel:
    """Make the model: four layers that see 64 patches, as the describer's, and two that read."""
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 5,
        "image_size": scenes.PIXELS, "patch_size": PATCH,
    }
    text = {
        "hidden_size": TEXT, "intermediate_size": 3 * TEXT, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.LENGTH, "vocab_size": len(words), "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=SHARED))


def worded(told: Told, picture: np.ndarray, rng: scenes.Random) -> str:
    """A caption as others might write it: without its article, or with the colour that is behind."""
    words = told[0].split()
    caption = " ".join(words[1:]) if len(words) > 1 and words[0] in ("a", "an") and rng.random() < 0.3 else told[0]
    return f"{caption} on {article(colour(picture))} background" if rng.random() < 0.3 else caption


def colour(picture: np.ndarray) -> str:
    """The name of the mean colour along the edge of a uint8 (H, W, 3) picture."""
    inner = picture[FRAME:-FRAME, FRAME:-FRAME].reshape(-1, 3).sum(0)
    area = picture.shape[0] * picture.shape[1] - (picture.shape[0] - 2 * FRAME) * (picture.shape[1] - 2 * FRAME)
    hue, saturation, value = colorsys.rgb_to_hsv(*((picture.reshape(-1, 3).sum(0) - inner) / area / 255))
    if value < 0.15 or saturation < 0.15:
        return "black" if value < 0.25 else "white" if value > 0.85 else "grey"
    name = HUES[round(12 * hue) % 12]
    return "brown" if name == "orange" and value < 0.6 else name


def agree(images_BD: torch.Tensor, texts_BD: torch.Tensor, scale: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """CLIP's loss: each picture finds its text among the batch's and each text its picture; equals are no rivals."""
    logits_BB = scale.exp().clamp(max=SHARPEST) * images_BD @ texts_BD.T
    rivals_BB = torch.tensor([[one != other for other in captions] for one in captions])
    logits_BB = logits_BB.masked_fill(~rivals_BB & ~torch.eye(len(captions), dtype=torch.bool), -torch.inf)
    right_B = torch.arange(len(captions))
    return (F.cross_entropy(logits_BB, right_B) + F.cross_entropy(logits_BB.T, right_B)) / 2


class Pupil(nn.Module):
    """The model, and the naming heads that make the vision tower learn sooner; they are not kept."""

    def __init__(self, proc: CLIPProcessor) -> None:
        super().__init__()
        self.clip, self.naming, self.words = network(proc.tokenizer), Naming(), proc.tokenizer

    def loss(self, images_BCHW: torch.Tensor, captions: list[str], told: list[Told]) -> torch.Tensor:
        """CLIP's loss, and the cross-entropy of animal and activity at the mean patch."""
        seen = self.clip.vision_model(images_BCHW)
        read = self.clip.text_model(**self.words(captions, padding=True, return_tensors="pt"))
        images_BD = F.normalize(self.clip.visual_projection(seen.pooler_output))
        texts_BD = F.normalize(self.clip.text_projection(read.pooler_output))
        mean_BD = seen.last_hidden_state[:, 1:].mean(1)
        return agree(images_BD, texts_BD, self.clip.logit_scale, captions) + 0.5 * self.naming.loss(mean_BD, told)


def train(pictures: np.ndarray, told: list[Told], steps: int, checkpoint: Path) -> tuple[CLIPModel, CLIPProcessor]:
    """Fit the model to uint8 (N, H, W, 3) pictures, each time shifted, blurred, speckled and worded anew."""
    torch.manual_seed(0)
    proc = processor()
    pupil = Pupil(proc)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    for step in loop(checkpoint, steps, {"pupil": pupil, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, RATE, warm=300))
        rng = np.random.default_rng((SEED, step))
        rows = rng.integers(len(pictures), size=BATCH)
        some = [told[row] for row in rows]
        captions = [worded(told[row], pictures[row], rng) for row in rows]
        value = pupil.loss(disturb(as_images(pictures[rows], "cpu")), captions, some)
        descend(pupil, optimizer, value)
        if step % 100 == 0:
            print(f"clip {step}/{steps} loss {value.item():.4f}", flush=True)
    return pupil.clip.eval(), proc


@torch.no_grad()
def right(folder: Path, pictures: np.ndarray, told: list[Told]) -> float:
    """The share of the pictures of animals whose caption, of all 180, is the nearest to them."""
    model, proc = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPProcessor.from_pretrained(folder)
    read = model.text_model(**proc.tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")).pooler_output
    texts_TD = F.normalize(model.text_projection(read))
    rows = [row for row, (caption, _, _) in enumerate(told) if caption in CAPTIONS]
    found: list[int] = []
    for at in range(0, len(rows), 100):
        seen = model.vision_model(as_images(pictures[rows[at : at + 100]], "cpu")).pooler_output
        found += (F.normalize(model.visual_projection(seen)) @ texts_TD.T).argmax(1).tolist()
    return float(np.mean([CAPTIONS[place] == told[row][0] for row, place in zip(rows, found, strict=True)]))


def main() -> None:
    """Read the command line, train, save, and say how often the right caption is the nearest."""
    wishes = wanted("python -m menagerie.clip", __doc__, STEPS)
    began = time.monotonic()
    drawings = art.load(wishes.art or art.fetch(wishes.work / "art"))
    model, proc = train(*pool(drawings, PICTURES, SEED), wishes.steps, wishes.work / "clip.pt")
    model.half().save_pretrained(wishes.out)
    proc.save_pretrained(wishes.out)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes; the right caption is nearest to held-out pictures: "
          f"{right(wishes.out, *pool(drawings, HELD_OUT, SEED - 1)):.1%}")


if __name__ == "__main__":
    main()
