"""The site's icon and its card for social media, from the shipped model: python tools/make_images.py"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_nb.training import LatentDiffusion

IMAGES = Path(__file__).parent.parent/'nbs'/'images'
BLUE = 39, 128, 227 # of the bar of the site (the theme cosmo)


def letters(size):
    import matplotlib
    font = Path(matplotlib.get_data_path())/'fonts'/'ttf'/'DejaVuSans-Bold.ttf'
    return ImageFont.truetype(str(font), size)


def favicon(sample):
    "One boot, white on blue, 64 pixels: twice its 28 pixels and a margin."
    shade = np.kron((np.asarray(sample[0]) + 1)/2, np.ones((2, 2))).clip(0, 1)[..., None]
    picture = np.full((64, 64, 3), BLUE, float)
    picture[4:60, 4:60] += shade*(255 - picture[4:60, 4:60])
    return Image.fromarray(picture.round().astype(np.uint8))


def card(samples):
    "The name above three rows of ten clothes, 1200 x 630."
    picture = Image.new('RGB', (1200, 630), BLUE)
    draw = ImageDraw.Draw(picture)
    draw.text((60, 36), 'ldm_nb', font=letters(84), fill='white')
    draw.text((60, 146), 'Learn latent diffusion from zero', font=letters(38), fill='white')
    for i, sample in enumerate(samples):
        shade = ((sample[0] + 1)*127.5).clamp(0, 255).round().byte().numpy()
        one = Image.fromarray(shade).resize((100, 100), Image.Resampling.LANCZOS)
        picture.paste(one, (60 + i % 10*109, 250 + i//10*109))
    return picture


def main():
    ldm = LatentDiffusion.from_pretrained('fashion')
    favicon(ldm.sample(1, labels=9, seed=1)[0]).save(IMAGES/'favicon.png')
    card(ldm.sample(30, seed=7)).save(IMAGES/'card.png', optimize=True)


if __name__ == '__main__': main()
