"""From a whole-slide image to the features of its tiles and super-tiles.

Both papers cut tiles where Otsu's threshold finds tissue. Then HE2RNA takes the features of an
ImageNet network and averages them into super-tiles. HistCode brings the tiles to common colours and
trains its network on them (histcode.py). The file reads in that order:

                           HE2RNA                          HistCode
    tissue                 Otsu (here of stain)            Otsu; "threshold 8"
    tiles                  112 µm, at most 8,000           128 µm, all
    colours                as they are (code: stretch)     normalised (here Macenko)
    features               ResNet50, 2,048                 ResNet50 to its third stage, 1,024
    super-tiles            100, k-means on places          none

  HE2RNA    Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from
            whole slide images", Nature Communications 11:3877 (2020)
  HistCode  Huang et al. 2022, arXiv:2204.11994: self-supervised, differential gene expression

Every function takes arrays and numbers (or an OpenSlide object) and returns arrays. The whole path:

    slide = openslide.open_slide("a.svs")
    mpp = float(slide.properties["openslide.mpp-x"])
    rgb, scanned = thumbnail(slide, mpp)
    tile = TILE_UM / mpp
    coords = tile_grid(tissue_mask(rgb, scanned), slide.dimensions, tile, max_tiles=MAX_TILES)
    pixels = read_tiles(slide, coords, tile)
    # HistCode: 128 µm, 256 px, all tiles, find_tissue(..., "saturation"), ResNet50(stages=3); and
    #     pixels, _ = macenko(pixels, slide_stains(slide, coords, tile, 256, seed=0))
    network = ResNet50()
    network.load_state_dict(torch.load("resnet50-0676ba61.pth"))   # torchvision's ImageNet weights
    features = encode(network, pixels)
    means, mask, cluster = supertiles(features, coords)

`python tiling.py VERB` does the same for a folder of slides; `python tiling.py --help` says how.

Coordinates are pixels of level 0 in OpenSlide's frame, x before y, unless a function says other
ones. No ICC profile is applied, and mpp is taken to be the same along x and y.

Glossary: n tiles (or pixels, or points), D features of a tile, k super-tiles (HE2RNA's k of top
tiles is another), B tiles of a batch, c coordinates of a point; W, H width and height of a slide
(level-0 pixels), w, h of any other picture; level: of the slide's pyramid, d its downsample; mpp:
µm per pixel of level 0; tile: edge of a tile in level-0 pixels; px: edge of a tile as it is read;
od: optical density, natural logarithm, against LIGHT; m stained pixels.
Tags: [HE2RNA ...] and [HistCode ...] the papers, [... code] only the authors' code, [ours] neither.
"Needs:" in a docstring names what must be copied along with a piece, beside the imports.
"""

if __name__ == "__main__":  # first: a command imports no more than it needs
    from lab.commands.start import start

    start("tiling")

import numpy as np
import openslide
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch import nn

# Tiles
TILE_UM = 112.0  # edge of a tile, µm; HistCode has 128             [HE2RNA Methods, Preprocessing]
TILE_PX = 224  # edge as the network sees it; HistCode 256          [HE2RNA Methods, Preprocessing]
MAX_TILES = 8000  # of a slide [HE2RNA Methods, Preprocessing], sampled at random            [ours]
N_SUPERTILES = 100  # clusters of tiles of a slide                  [HE2RNA Methods, Preprocessing]
# Least share of tissue in a tile. HE2RNA: "containing tissue". HistCode's "surface area covered by
# tissue cells is less than 100" has no unit; its code drops pieces: `least` of find_tissue   [ours]
MIN_TISSUE = 0.5
RUN_TILES = 16  # neighbouring tiles read in one go: few of a file's own are decoded twice   [ours]

# The picture on which tissue is found
THUMBNAIL_UM = 8.0  # µm per pixel; coarser where that gives more than THUMBNAIL_PIXELS      [ours]
THUMBNAIL_PIXELS = 2**25  # at most; a slide of 26 x 76 mm has 31 million at 8 µm            [ours]
STRIP_PIXELS = 2**23  # of a level, read at once: a slide without smaller levels fits memory [ours]
STRIP_WIDTH = 2**13  # of what is read at once: few of a file's own tiles are read twice     [ours]
BLOCK_PX = 512  # edge of what is worked on at once: little memory, and floats fit the cache [ours]
RIM_PX = 16  # around a block: what in_blocks computes sees no farther (stain_against: 12)   [ours]
# Edges of a slide, its frame included, mm, at most: the largest glass has 102 x 152, scanned inside
GLASS_MM = (100, 200)  #                                                                     [ours]

# What no scanner saw: files are filled up with one grey, white or black
EVEN_PX = 5  # edge of the squares that are looked for, of a thumbnail or a tile             [ours]
LINE_PX = 8  # of a straight edge; the fields of a microscope's camera are larger            [ours]
STRAIGHT = 0.9  # least share of its outline that is straight; glass that clips has less     [ours]
FILLED_RIM_PX = 2  # around it, which resampling blurs                                       [ours]
NOISY = 0.5  # of what a scanner saw, at least: drawings may have none                       [ours]
GLASS_LEAST = 150  # its brightest channel; real glass has 210 and more                      [ours]
GLASS_TINT = 0.2  # its saturation, at most; the pink glass of old scanners has 0.15         [ours]
GLASS_RANGE = 4.0  # grey levels around its colour                                           [ours]

# Tissue by stain. µm are those of pixels of 8 µm: on a coarser picture the pixels stay as many
SMOOTH_PX = 2.0  # Gaussian sigma: 16 µm, so that nuclei and stroma are one tissue           [ours]
BLACK_LEVEL = 50  # a brightest channel below it is scanner border or black pen              [ours]
INK_RIM_PX = 3  # around pen, which bleeds                                                   [ours]
STAIN_OFFSET = 8.0  # grey levels added before the logarithm: black's noise is no stain      [ours]
GLASS_SD = 2.5  # grey levels over 40 µm: glass has 0.3 to 0.8, the palest tissue 6 to 29    [ours]
GLASS_PX = 5  # over which brightness is compared                                            [ours]
GLASS_SHARE = 0.05  # of the brightest tenth; where less of it is flat, no glass is seen     [ours]
NO_GLASS = 245.0  # the light where no glass is seen                                         [ours]
STAIN_FLOOR = 0.03  # log10; Otsu's threshold stays above: an empty slide has no tissue      [ours]
STAIN_CEILING = 0.08  # log10; and below: pale stroma is not lost to dark nuclei             [ours]

# Tissue by saturation; pixels of the authors' picture, not rescaled to THUMBNAIL_UM
MEDIAN_PX = 7  # of the saturation                                                  [HistCode code]
CLOSE_PX = 4  # of the mask                                                         [HistCode code]

# Macenko's normalisation. The numbers down to REFERENCE_TOP are those of its common
# implementations, which take the natural logarithm and add one grey level. Macenko's paper takes
# log10: its .15 is .35 here.
LIGHT = 240.0  # intensity without dye                                                       [ours]
MIN_OD = 0.15  # of each channel of a stained pixel                                          [ours]
# Percentiles of the stained pixels' angles, which give the two stains; the upper one is also that
# of their concentrations                                                                     [ours]
EXTREMES = (1, 99)
REFERENCE = (  # haematoxylin and eosin in R, G, B                                           [ours]
    (0.5626, 0.7201, 0.4062),
    (0.2159, 0.8012, 0.5581),
)
REFERENCE_TOP = (1.9705, 1.0308)  # 99th percentiles of their concentrations                 [ours]
STAINED = 0.01  # a tile or slide with a smaller share of stained pixels keeps its colours   [ours]
MIN_ANGLE = 8.0  # degrees between two stains: 14 to 38 on real slides; noise gives up to 6  [ours]
STAIN_TILES = 64  # tiles that tell a slide's stains                                         [ours]
STAIN_STEP = 4  # of them every 4th pixel of every 4th row                                   [ours]
PALE_GREY = 206  # a grey that was filled up and is darker has MIN_OD                        [ours]
JPEG_BLACK = 16  # black that was filled up is darker, even in a JPEG's blocks at its edge   [ours]
JPEG_PX = 16  # around what was filled up, where JPEG's blocks hold both; pixels of a tile   [ours]

# Features: torchvision's normalisation of RGB in 0..1, which its weights need. The authors' Keras
# weights want BGR minus a mean [HE2RNA code].
IMAGENET_MEAN = (0.485, 0.456, 0.406)  #                                                     [ours]
IMAGENET_STD = (0.229, 0.224, 0.225)  #                                                      [ours]

# k-means
KMEANS_DRAWS = 5  # candidates for each starting centre; scikit-learn takes 2 + log k        [ours]
KMEANS_ITERATIONS = 300  # at most, as scikit-learn                                          [ours]
KMEANS_STILL = 1e-4  # of the variance: centres that move less stand still, as scikit-learn  [ours]


# ----- A slide -----------------------------------------------------------------------------------


def slide_bounds(slide):
    """(x, y, width, height) of the part that was scanned, level-0 pixels.

    It is the whole slide, but for files that lie in a larger frame (MIRAX, Leica, Ventana).
    """
    try:
        return tuple(
            int(slide.properties[f"openslide.bounds-{name}"])
            for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return 0, 0, *slide.dimensions


def best_level(slide, downsample):
    """(level, its downsample): the coarsest level of at most this downsample, or 1 % above it.

    What is read from it is reduced. Where even level 0 is coarser it is enlarged: HistCode takes
    only slides of more than 20x [HistCode Methods, Whole slide image]; here any may be asked for.
    [ours]
    """
    best = 0
    for level, d in enumerate(slide.level_downsamples):
        if slide.level_downsamples[best] < d <= downsample * 1.01:
            best = level
    return best, slide.level_downsamples[best]


def read_rgba(slide, level, x, y, w, h):
    """A picture of w x h pixels of a level, from that level's pixel (x, y).

    Its alpha is 0 where nothing was scanned.
    """
    d = slide.level_downsamples[level]
    try:
        corner = round(x * d), round(y * d)
        return slide.read_region(corner, level, (w, h))
    except openslide.OpenSlideError as error:
        raise ValueError(f"the slide can't be read to its end ({error})") from None


def thumbnail_um(size, mpp):
    """THUMBNAIL_UM, or more: the µm per pixel at which the slide has THUMBNAIL_PIXELS pixels."""
    W, H = size
    pixels = W * H * (mpp / THUMBNAIL_UM) ** 2
    return THUMBNAIL_UM * max(1.0, (pixels / THUMBNAIL_PIXELS) ** 0.5)


def thumbnail(slide, mpp, um=None):
    """The whole slide at `um` µm per pixel -> rgb (h, w, 3) uint8, scanned (h, w) bool.

    um None: thumbnail_um's. Level 0 is never enlarged. scanned: opaque, and within slide_bounds;
    the rest is white. [ours]
    """
    check_size(slide, mpp)
    W, H = slide.dimensions
    um = um or thumbnail_um((W, H), mpp)
    scale = max(1.0, um / mpp)
    w = max(1, round(W / scale))
    h = max(1, round(H / scale))
    rgba = read_reduced(slide, scale, w, h)
    opaque = rgba[:, :, 3] >= 128
    left, top, width, height = slide_bounds(slide)
    x = (np.arange(w) + 0.5) * W / w  # centres of the columns, level-0 pixels
    y = (np.arange(h) + 0.5) * H / h
    inside_x = (x >= left) & (x < left + width)
    inside_y = (y >= top) & (y < top + height)
    scanned = opaque & inside_y[:, None] & inside_x
    rgb = rgba[:, :, :3].copy()
    rgb[~scanned] = 255
    return rgb, scanned


def check_size(slide, mpp):
    """ValueError where a slide is larger than glass, to 1 mm: its mpp is wrong, or it is broken."""
    W, H = slide.dimensions
    edges = np.multiply(slide.dimensions, mpp / 1000)  # mm
    short, long = sorted(edges.round())
    if short > GLASS_MM[0] or long > GLASS_MM[1]:
        raise ValueError(
            f"{W:,} x {H:,} pixels of {mpp:g} µm are {short:,.0f} x {long:,.0f} mm, more than a "
            "glass slide has: the file is broken, or its mpp is wrong"
        )


def read_reduced(slide, scale, w, h):
    """The whole slide as (h, w, 4) uint8, each pixel the mean of its box; read in pieces. [ours]"""
    level, _ = best_level(slide, scale)
    level_w, level_h = slide.level_dimensions[level]
    wide = min(level_w, STRIP_WIDTH)
    columns = max(1, int(wide * w / level_w))
    rows = max(1, int(STRIP_PIXELS / (wide * level_h / h)))
    out = np.empty((h, w, 4), np.uint8)
    for top in range(0, h, rows):
        for left in range(0, w, columns):
            box = left, top, min(w, left + columns), min(h, top + rows)
            out[top : box[3], left : box[2]] = read_box(slide, level, box, (w, h))
    return out


def read_box(slide, level, box, size):
    """A box (left, top, right, bottom) of the whole slide's picture of `size` (w, h) pixels."""
    edges = np.reshape(box, (2, 2)) * slide.level_dimensions[level] / size  # pixels of the level
    low = edges[0].astype(int)
    high = np.minimum(np.ceil(edges[1]).astype(int), slide.level_dimensions[level])
    piece = read_rgba(slide, level, *low.tolist(), *(high - low).tolist())
    inside = np.minimum(edges - low, piece.size)
    small = (box[2] - box[0], box[3] - box[1])
    return piece.resize(small, Image.Resampling.BOX, tuple(inside.ravel()))


# ----- Otsu --------------------------------------------------------------------------------------
# [HE2RNA Methods, Preprocessing: "used the Otsu algorithm to select only those containing tissue"];
# [HistCode Methods, Image processing, which names it too]


def otsu_threshold(values):
    """The threshold t that maximises the variance between the classes `<= t` and `> t`. Otsu 1979.

    values: any shape, uint8 or floats. Returns t in their units. Floats part at the upper edge of
    one of 256 bins, and t is that bin's centre, as in scikit-image. Of equally good ones the
    lowest; where all values are equal, that value.

    Needs: BLOCK_PX.
    """
    values = np.ravel(values)
    low = float(values.min())
    high = float(values.max())
    if low == high:
        return low
    is_uint8 = values.dtype == np.uint8
    edges = np.arange(257) - 0.5 if is_uint8 else np.linspace(low, high, 257)
    centers = (edges[:-1] + edges[1:]) / 2
    counts = np.zeros(256)
    for part in np.array_split(values, 1 + len(values) // BLOCK_PX**2):  # little memory
        if is_uint8:
            counts += np.bincount(part, minlength=256)
        else:
            counts += np.histogram(part.astype(float), 256, (low, high))[0]
    n_low = np.cumsum(counts)  # values up to each bin  (256,)
    n_high = n_low[-1] - n_low
    sum_low = np.cumsum(counts * centers)
    sum_high = sum_low[-1] - sum_low
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sum_low / n_low - sum_high / n_high
    between = n_low * n_high * distance**2
    both = (n_low > 0) & (n_high > 0)
    best = np.where(both, between, -1).argmax()
    return float(centers[best])


# ----- Tissue ------------------------------------------------------------------------------------


def tissue_mask(rgb, scanned=None):
    """Where a thumbnail shows tissue: (h, w, 3) uint8, 8 µm per pixel or more -> (h, w) bool.

    scanned (h, w) bool: what may be tissue. Background (white, grey, tinted, unevenly lit), pen,
    black borders, gaps in tissue and what was filled up are not tissue.

    Needs: find_tissue, in_blocks, filled_up, straight_pieces, straight_lines, is_even, is_grey,
    extremes, brightest_of, darkest_of, without_noise, not_black, stain_map, stain_against,
    glass_colour, bright_and_glass, is_flat, pen_mask, stain_threshold, otsu_threshold, drop_pieces,
    BLOCK_PX, RIM_PX, EVEN_PX, LINE_PX, STRAIGHT, FILLED_RIM_PX, NOISY, GLASS_LEAST, GLASS_TINT,
    GLASS_RANGE, GLASS_PX, INK_RIM_PX, BLACK_LEVEL, GLASS_SD, GLASS_SHARE, NO_GLASS, STAIN_OFFSET,
    SMOOTH_PX, STAIN_FLOOR, STAIN_CEILING.
    """
    if scanned is None:
        scanned = np.ones(rgb.shape[:2], bool)
    return find_tissue(rgb, scanned)[0]


def find_tissue(rgb, scanned, tissue="stain", threshold="otsu", least=0):
    """tissue_mask with its choices -> mask (h, w) bool, the threshold that it is above.

    tissue: what has a threshold, "stain" (optical density [ours]) or "saturation" (0..255 [HistCode
    code]), which takes pen and black borders for tissue. threshold, of saturation alone: "otsu" or
    a number. "The threshold 8 was used" beside Otsu [HistCode Methods, Image processing]; Otsu
    finds its own, so here it is one or the other, as in CLAM (Lu et al. 2021), whose code HistCode
    took. least: pixels of the smallest piece that is kept; HistCode's "less than 100" [HistCode
    code].

    Beside what tissue_mask needs: saturation_map, close_gaps, MEDIAN_PX, CLOSE_PX.
    """
    scanned = scanned & ~filled_up(rgb, scanned)
    if tissue == "stain":
        amount = stain_map(rgb, scanned)  # (h, w)
        threshold = stain_threshold(amount, scanned)
        mask = amount > threshold
    else:
        amount = in_blocks(saturation_map, rgb)
        if threshold == "otsu":
            threshold = otsu_threshold(amount[scanned] if scanned.any() else amount)
        mask = in_blocks(close_gaps, amount > threshold)
    return drop_pieces(mask & scanned, least), float(threshold)


def in_blocks(function, *pictures, **more):
    """function(*pictures, **more) -> (h, w), worked out block by block, with the same values.

    Of what it computes on the way only a block's is held at once; the result is whole. Each pixel
    may depend on pixels at most RIM_PX away. An array's `take` goes by blocks too, since it makes
    8-byte indices.
    """
    h, w = pictures[0].shape[:2]
    out = None
    for y in range(0, h, BLOCK_PX):
        for x in range(0, w, BLOCK_PX):
            top = max(0, y - RIM_PX)
            left = max(0, x - RIM_PX)
            wide = np.s_[top : y + BLOCK_PX + RIM_PX, left : x + BLOCK_PX + RIM_PX]
            blocks = [picture[wide] for picture in pictures]
            done = function(*blocks, **more)[y - top :, x - left :]
            if out is None:
                out = np.empty((h, w), done.dtype)
            out[y : y + BLOCK_PX, x : x + BLOCK_PX] = done[:BLOCK_PX, :BLOCK_PX]
    return out


def filled_up(rgb, scanned):
    """Where no scanner saw anything: (h, w, 3), (h, w) bool -> (h, w) bool.

    Files are filled up beside and between what was scanned. White beside tinted glass would be
    taken for the glass, and the glass for tissue; any of it moves Otsu's threshold. Filling is
    exactly one grey, with straight edges, since scanners see rectangles, and not the grey of the
    glass. Glass that clips at 255 is exactly one grey too, but its edges are those of the tissue.
    Nothing counts as filling where more than half of the rest is without noise (drawings, clipped
    glass), or where the brightest flat part of the rest is too dark or tinted for glass: then the
    grey may be the glass. [ours]
    """
    flat = in_blocks(is_even, rgb) & scanned
    filled = straight_pieces(flat & in_blocks(is_grey, rgb))
    if not filled.any():
        return filled
    grow = EVEN_PX + 2 * FILLED_RIM_PX  # is_even took half a square off each edge
    seen = scanned & ~ndimage.maximum_filter(filled, grow)
    valid = in_blocks(not_black, rgb) & seen
    if not valid.any() or flat[seen].mean() > 1 - NOISY:
        return np.zeros_like(filled)
    white = glass_colour(rgb, valid)
    if white is not None:
        greys = np.arange(256, dtype=np.float32)[:, None]
        unlike = np.abs(greys - white).max(1) > GLASS_RANGE  # (256,)
        filled &= in_blocks(unlike.take, rgb[:, :, 0])  # one channel tells a grey
        filled &= white.max() >= GLASS_LEAST and np.ptp(white) <= GLASS_TINT * white.max()
    return ndimage.maximum_filter(filled, grow)


def straight_pieces(mask):
    """The pieces of a mask (h, w) whose outlines are straight."""
    if not mask.any():
        return mask
    pieces, n = ndimage.label(mask)
    rim = mask & ~ndimage.binary_erosion(mask, border_value=1)
    outline = np.bincount(pieces[rim], minlength=n + 1)  # of each piece, pixels
    straight = np.bincount(pieces[rim & in_blocks(straight_lines, rim)], minlength=n + 1)
    is_straight = (outline > 0) & (straight >= STRAIGHT * outline)
    return in_blocks(is_straight.take, pieces)


def brightest_of(rgb):
    """The largest channel of each pixel."""
    r, g, b = np.moveaxis(rgb, -1, 0)
    return np.maximum(np.maximum(r, g), b)


def darkest_of(rgb):
    r, g, b = np.moveaxis(rgb, -1, 0)
    return np.minimum(np.minimum(r, g), b)


def is_grey(rgb):
    return brightest_of(rgb) == darkest_of(rgb)


def is_even(rgb):
    """Whether all pixels of the square around a pixel are of its colour."""
    low, high = extremes(rgb)
    return brightest_of(high - low) == 0


def extremes(rgb):
    """The least and the largest of each channel in the square around a pixel, twice (h, w, 3)."""
    square = (EVEN_PX, EVEN_PX, 1)
    return ndimage.minimum_filter(rgb, square), ndimage.maximum_filter(rgb, square)


def straight_lines(rim):
    """Where straight lines along x or y run, to one pixel: outlines (h, w) -> (h, w) bool."""
    wider = ndimage.binary_dilation(rim, np.ones((1, 3)))
    taller = ndimage.binary_dilation(rim, np.ones((3, 1)))
    along_y = ndimage.binary_opening(wider, np.ones((LINE_PX, 1)))
    along_x = ndimage.binary_opening(taller, np.ones((1, LINE_PX)))
    return along_x | along_y


def without_noise(rgb):
    """A picture, or one channel, without the noise of sensor and JPEG: float32."""
    size = (3, 3, 0)[: rgb.ndim]
    return ndimage.uniform_filter(rgb.astype(np.float32), size)


def not_black(rgb):
    return brightest_of(without_noise(rgb)) >= BLACK_LEVEL


def stain_map(rgb, scanned=None):
    """How much dye each pixel holds: (h, w) float32, a log10 density; 0 on ink and black borders.

    It is the largest minus the smallest channel's density against the glass. Uneven or grey light
    dims all channels alike and cancels, a tint is divided out, haematoxylin and eosin remain.
    The papers name Otsu's algorithm, but not the picture whose threshold it finds. The density is
    log10 here, of the light of this slide's glass. [ours]
    """
    valid = in_blocks(not_black, rgb)
    if scanned is not None:
        valid &= scanned
    if not valid.any():
        return np.zeros(rgb.shape[:2], np.float32)
    white = glass_colour(rgb, valid)  # (3,)
    if white is None:
        white = np.full(3, NO_GLASS)
    return in_blocks(stain_against, rgb, valid, white=white)


def stain_against(rgb, valid, white):
    """The stain map of a block, against the colour of the slide's glass."""
    x = without_noise(rgb)
    density = -np.log10((x + STAIN_OFFSET) / (white + STAIN_OFFSET))  # (h, w, 3)
    ink = ndimage.binary_dilation(pen_mask(x), iterations=INK_RIM_PX)
    valid = valid & ~ink
    stain = np.where(valid, brightest_of(density) - darkest_of(density), 0)
    smooth = ndimage.gaussian_filter(stain, SMOOTH_PX)
    return smooth.astype(np.float32) * valid


def glass_colour(rgb, valid):
    """The colour (3,) of the bright flat part of a picture; None of a crop within tissue."""
    bright, glass = bright_and_glass(rgb[:, :, 1], valid)  # in green both dyes are darkest
    if glass.sum() < GLASS_SHARE * bright.sum():
        return None
    white = []
    for channel in np.moveaxis(rgb, 2, 0):
        values = in_blocks(without_noise, channel)[glass]
        white.append(np.median(values, overwrite_input=True))
    return np.array(white)


def bright_and_glass(green, valid):
    """The brightest tenth of a picture, and what is flat of it, twice (h, w) bool."""
    green = in_blocks(without_noise, green)
    tenth = np.percentile(green[valid], 90, overwrite_input=True)
    bright = valid & (green >= tenth)
    return bright, bright & in_blocks(is_flat, green)


def is_flat(green):
    mean = ndimage.uniform_filter(green, GLASS_PX)
    mean_of_squares = ndimage.uniform_filter(green**2, GLASS_PX)
    return mean_of_squares - mean**2 < GLASS_SD**2


def pen_mask(rgb):
    """Marker ink: hues that no dye of H&E has, and blues and reds purer than any. (h, w) bool

    The limits were chosen by eye. [ours]
    """
    rgb = np.asarray(rgb, np.float32)
    r, g, b = np.moveaxis(rgb, 2, 0)
    brightest = brightest_of(rgb)
    chroma = brightest - darkest_of(rgb)
    divisor = np.maximum(chroma, 1e-6)
    red_sector = ((g - b) / divisor) % 6
    green_sector = (b - r) / divisor + 2
    blue_sector = (r - g) / divisor + 4
    sector = np.where(brightest == g, green_sector, blue_sector)
    sector = np.where(brightest == r, red_sector, sector)
    hue = 60 * sector  # degrees
    purity = chroma / np.maximum(brightest, 1)  # saturation of HSV, 0..1
    green = (hue > 65) & (hue < 215) & (purity > 0.25)
    blue = (hue >= 215) & (hue < 262) & (purity > 0.7)
    red = ((hue > 345) | (hue < 20)) & (purity > 0.75)
    return (green | blue | red) & (chroma > 25)


def stain_threshold(stain, scanned):
    """Otsu's threshold of the square root of the stain, squared, within floor and ceiling.

    Stain is skewed: plain Otsu would cut between pale stroma and dark nuclei, its root cuts
    between glass and tissue. [ours]
    """
    root = stain[scanned]
    if root.size == 0:
        return STAIN_CEILING
    np.sqrt(root, out=root)
    threshold = otsu_threshold(root) ** 2
    return float(np.clip(threshold, STAIN_FLOOR, STAIN_CEILING))


def saturation_map(rgb):
    """Saturation of HSV, 0..255, after a median: (h, w, 3) -> (h, w) uint8. [HistCode code]"""
    brightest = brightest_of(rgb).astype(float)
    chroma = brightest - darkest_of(rgb)
    saturation = 255 * chroma / np.maximum(brightest, 1)
    rounded = np.floor(saturation + 0.5).astype(np.uint8)
    return ndimage.median_filter(rounded, MEDIAN_PX, mode="nearest")


def close_gaps(mask):
    """Morphological closing that leaves the rim of the picture as it is. [HistCode code]"""
    square = np.ones((CLOSE_PX, CLOSE_PX), bool)
    grown = ndimage.binary_dilation(mask, square)
    return ndimage.binary_erosion(grown, square, border_value=1)


def drop_pieces(mask, least):
    """A mask without its pieces of fewer than `least` pixels; pixels hang together by corners."""
    if least <= 1:
        return mask
    with_corners = np.ones((3, 3))
    pieces, n = ndimage.label(mask, with_corners)
    size = np.zeros(n + 1, int)
    for part in np.array_split(pieces.ravel(), 1 + mask.size // BLOCK_PX**2):
        size += np.bincount(part, minlength=n + 1)
    large = size >= least
    return mask & in_blocks(large.take, pieces)


# ----- Tiles -------------------------------------------------------------------------------------


def tile_grid(mask, size, tile, min_tissue=MIN_TISSUE, max_tiles=None, seed=0):
    """The tiles of a regular grid that hold enough tissue -> (n, 2) int32, top left corners.

    mask (h, w) over the whole slide; size (W, H) of the slide in level-0 pixels, as the corners
    x, y; tile: edge of a tile in level-0 pixels, µm / mpp, not rounded, so that the grid keeps its
    pitch in µm. Row by row; tiles that cross the right or lower edge are left out. Of more than
    max_tiles a random sample; None for maps, which take "every tile" [HE2RNA Methods, Visual
    spatialization]. The grid begins at the slide's corner [ours]. It is cut first and selected
    from, as HE2RNA does [HE2RNA Methods, Preprocessing]; HistCode excludes background first.

    Needs: tissue_share, sample, MIN_TISSUE.
    """
    W, H = size
    columns = int(W / tile + 1e-6)
    rows = int(H / tile + 1e-6)
    if columns == 0 or rows == 0:
        return np.zeros((0, 2), np.int32)
    share = tissue_share(mask, size, tile, rows, columns)
    enough = (share >= min_tissue - 1e-9) & (share > 1e-9)
    row, column = np.nonzero(enough)
    corners = np.stack([column, row], 1) * tile
    coords = corners.astype(np.int32)  # rounded down, so that a tile stays inside the slide
    if max_tiles is not None:
        coords = sample(coords, max_tiles, seed)
    return coords


def tissue_share(mask, size, tile, rows, columns):
    """The share of tissue in each tile of a grid (rows, columns); parts of pixels count exactly."""
    (W, H), (h, w) = size, mask.shape
    y = np.arange(rows + 1) * tile * h / H  # the grid's lines, in pixels of the mask
    x = np.arange(columns + 1) * tile * w / W
    above = np.zeros((h + 1, columns))  # tissue of each column of tiles, above a row of pixels
    for i, row in enumerate(mask):
        left_of = np.concatenate([[0], row.cumsum()])  # (w + 1,)
        at_x = np.interp(x, np.arange(w + 1), left_of)
        above[i + 1] = above[i] + np.diff(at_x)
    y = np.minimum(y, h)
    whole = np.minimum(y.astype(int), h - 1)
    part = (y - whole)[:, None]
    at_y = above[whole] * (1 - part) + above[whole + 1] * part
    inside = np.diff(at_y, axis=0)
    tile_area = tile * h / H * tile * w / W
    return inside / tile_area


def sample(rows, most, seed):
    """At most so many rows of an array, drawn at random, in their order."""
    if len(rows) <= most:
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[np.sort(order[:most])]


def read_tiles(slide, coords, tile, px=TILE_PX):
    """The pixels of tiles: coords (n, 2) -> (n, px, px, 3) uint8. Unscanned: white [ours]."""
    coords = np.asarray(coords)
    out = np.empty((len(coords), px, px, 3), np.uint8)
    for first, end in tile_runs(coords, tile):
        out[first:end] = read_run(slide, coords[first:end], tile, px)
    return out


def tile_runs(coords, tile):
    """[(first, end)], end not included: tiles side by side, RUN_TILES together at most."""
    runs = []
    start = 0
    for i in range(1, len(coords) + 1):
        together = i < len(coords) and i - start < RUN_TILES
        if together:
            right, down = coords[i] - coords[i - 1]
            together = down == 0 and 0 <= right <= tile + 1  # corners are rounded down
        if not together:
            runs.append((start, i))
            start = i
    return runs


def read_run(slide, coords, tile, px):
    """Tiles side by side, read in one go; each is cut out and resampled once (Lanczos). [ours]

    A tile's pixels depend on that tile alone and not on its neighbours, but for OpenSlide's
    rounding to whole level-0 pixels where a downsample is no whole number.
    """
    level, d = best_level(slide, tile / px)
    edge = tile / d  # in pixels of the level
    left, top = coords[0]
    right, bottom = coords[-1] + tile
    x0 = int(left / d)
    y0 = int(top / d)
    w = int(np.ceil(right / d)) - x0
    h = int(np.ceil(bottom / d)) - y0
    rgba = read_rgba(slide, level, x0, y0, w, h)
    region = on_white(rgba)
    corners = coords / d - (x0, y0)
    tiles = [cut_out(region, x, y, edge, px) for x, y in corners]
    return np.stack(tiles)


def on_white(picture):
    """A picture with transparency -> RGB, white where it is transparent."""
    least_alpha, _ = picture.getextrema()[3]
    if least_alpha < 255:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def cut_out(region, left, top, edge, px):
    """A square of a picture, at any real numbers -> (px, px, 3) uint8; nothing beyond is seen."""
    x0 = int(left)
    y0 = int(top)
    x1 = int(np.ceil(left + edge))
    y1 = int(np.ceil(top + edge))
    piece = region.crop((x0, y0, x1, y1))
    left -= x0
    top -= y0
    right = min(left + edge, piece.width)
    bottom = min(top + edge, piece.height)
    box = (left, top, right, bottom)
    small = piece.resize((px, px), Image.Resampling.LANCZOS, box)
    return np.asarray(small)


# ----- Colour ------------------------------------------------------------------------------------
# [HistCode Methods, Image processing: "we applied color normalization on tiles"]; the method is our
# choice: Macenko et al., "A method for normalizing histology slides for quantitative analysis",
# ISBI 2009. HE2RNA's paper is silent; its authors' code has `stretch`.

GREY_LEVELS = np.arange(256, dtype=np.float32)
DENSITY = -np.log((GREY_LEVELS + 1) / LIGHT)  # of each grey level  (256,)


def optical_density(rgb):
    """-ln((I + 1) / LIGHT), how much light the dye took; any shape of uint8 -> float32.

    The 1 keeps black finite.
    """
    return DENSITY.take(rgb)


def stained_pixels(od):
    """Which pixels are dense in each channel: (..., 3) -> (...) bool.

    In each, as in the common implementations: dense in the mean of the channels lets in so much
    pale noise that eosin's red falls to zero or below on real slides.
    """
    r, g, b = np.moveaxis(od >= MIN_OD, -1, 0)
    return r & g & b


def macenko_stains(od):
    """Densities of pixels (n, 3) -> stains (2, 3), 99th percentiles of their amounts (2,); or None.

    The stains, haematoxylin and eosin, are unit vectors: the two extreme directions in the plane
    that holds most of the density. The plane goes through 0, which is no dye; the common
    implementations centre it, which turns it by under 3 degrees. The percentiles are of the
    stained pixels, so that they do not depend on how much glass is around. None where too few
    pixels are stained, or where one stain or one colour tells no plane. [ours]
    """
    dense = od[stained_pixels(od)].astype(np.float64)  # (m, 3)
    if len(dense) < max(1, STAINED * len(od)):
        return None
    _, axes = np.linalg.eigh(dense.T @ dense)  # least first
    plane = axes[:, [2, 1]]  # (3, 2)
    sign = np.where(plane.sum(0) < 0, -1, 1)  # eigh's are arbitrary
    plane = plane * sign
    along, across = (dense @ plane).T
    angles = np.arctan2(across, along)  # (m,)
    ends = np.percentile(angles, EXTREMES)
    if np.degrees(ends[1] - ends[0]) < MIN_ANGLE:
        return None
    directions = np.stack([np.cos(ends), np.sin(ends)])  # (2, 2)
    stains = directions.T @ plane.T  # (2, 3)
    red = stains[:, 0]
    stains = stains[np.argsort(-red)]  # haematoxylin takes more of it
    concentrations = dense @ np.linalg.pinv(stains)  # (m, 2)
    top = np.percentile(concentrations, EXTREMES[1], axis=0)
    return stains, top


def macenko(tiles, found):
    """Tiles (n, h, w, 3) uint8 in the reference's colours, and which were changed (n,) bool.

    found: what macenko_stains says of the slide. Nothing is changed where it is None, nor a tile
    with too few stained pixels. Concentrations by least squares, scaled to the reference's
    percentiles, laid on in the reference's stains: all linear, so one (3, 3) matrix.
    """
    changed = np.zeros(len(tiles), bool)
    if found is None:
        return tiles, changed
    stains, top = found
    unmix = np.linalg.pinv(stains)  # (3, 2): density @ unmix = concentrations
    scaled = unmix * (REFERENCE_TOP / top)
    matrix = -scaled @ REFERENCE  # (3, 3)
    matrix = matrix.astype(np.float32)
    out = tiles.copy()
    for i, picture in enumerate(tiles):
        od = optical_density(picture.reshape(-1, 3))  # (h w, 3)
        changed[i] = stained_pixels(od).mean() >= STAINED
        if changed[i]:
            light = np.exp(od @ matrix) * LIGHT  # I + 1; the 1 stays, as is common
            out[i] = np.minimum(light + 0.5, 255).reshape(picture.shape)  # uint8 cuts the fraction
    return out, changed


def slide_stains(slide, coords, tile, px, seed):
    """The stains of a slide, as macenko_stains, from a random sample of its tiles.

    Of the slide and not of each tile: slides are stained as a whole, and a tile's extremes are
    those of its tissue: stroma without nuclei would be painted with haematoxylin. On eight real
    slides the median tile's stains were up to 5 degrees from its slide's, and its percentiles 3 to
    26 % off. 64 tiles come within 1 degree and 8 %. Black or grey that was filled up is no stain.
    [ours]
    """
    if len(coords) == 0:
        return None
    grow = EVEN_PX + 2 * JPEG_PX
    pixels = []
    for corner in sample(coords, STAIN_TILES, seed):
        rgb = read_tiles(slide, corner[None], tile, px)[0]
        low, high = extremes(rgb)
        brightest = high.max(2)
        grey = (low.min(2) == brightest) & (brightest < PALE_GREY)
        seen = ~ndimage.maximum_filter(grey | (brightest < JPEG_BLACK), grow)
        few = np.s_[::STAIN_STEP, ::STAIN_STEP]
        pixels.append(rgb[few][seen[few]])
    pixels = np.concatenate(pixels)
    return macenko_stains(optical_density(pixels))


def stretch(tiles):
    """Each channel of each tile (n, h, w, 3) uint8 from its lowest to its highest value as 0..255.

    A channel of one value becomes 0. How dark a tile was is lost, and whether there is glass in it
    decides what is white. [HE2RNA code]
    """
    tiles = tiles.astype(np.float32)
    low = tiles.min((1, 2), keepdims=True)  # (n, 1, 1, 3)
    high = tiles.max((1, 2), keepdims=True)
    scale = 255 / np.maximum(high - low, 1)
    stretched = (tiles - low) * scale
    return (stretched + 0.5).astype(np.uint8)


# ----- Features ----------------------------------------------------------------------------------
# [HE2RNA Methods, Preprocessing: "2,048 features from those tiles with a 50-layer ResNet pretrained
# on the ImageNet dataset"]; [HistCode Methods, Contrastive learning for feature extraction: "We
# used only the first four main layers (the output of the last layer is 1024)": conv1 to layer3]


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 with a shortcut around them. He et al. 2015.

    The stride is on the 3x3, as in torchvision, and not on the first 1x1 as in that paper. [ours]
    """

    def __init__(self, n_in, n_mid, stride):
        super().__init__()
        n_out = 4 * n_mid
        self.conv1 = nn.Conv2d(n_in, n_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_mid)
        self.conv2 = nn.Conv2d(n_mid, n_mid, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_mid)
        self.conv3 = nn.Conv2d(n_mid, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride > 1 or n_in != n_out:
            shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(n_out))

    def forward(self, x):  # (B, n_in, h, w)
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return y.add_(shortcut).relu_()  # (B, 4 n_mid, h / stride, w / stride)


class ResNet50(nn.Module):
    """ResNet50 up to its pooled features: normalised RGB (B, 3, px, px) -> (B, 2048).

    With stages=3, which has neither layer4 nor fc, (B, 1024). The state_dict has torchvision's
    names: 320 entries, 25,557,032 parameters. The classifier `fc` is kept so that published weights
    load as they are; features are what goes into it. With stages=3 load them with strict=False.
    Call .eval() before use; `normalise` makes the input.

    Needs: Bottleneck, start_as_torchvision.
    """

    def __init__(self, stages=4):
        super().__init__()
        self.stages = stages
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.n_features = 64  # channels so far; D at the end
        self.layer1 = self.stage(3, 64, stride=1)
        self.layer2 = self.stage(4, 128, stride=2)
        self.layer3 = self.stage(6, 256, stride=2)
        if stages == 4:
            self.layer4 = self.stage(3, 512, stride=2)
            self.fc = nn.Linear(self.n_features, 1000)
        self.apply(start_as_torchvision)

    def stage(self, n_blocks, width, stride):
        blocks = [Bottleneck(self.n_features, width, stride)]
        self.n_features = 4 * width
        for _ in range(n_blocks - 1):
            blocks.append(Bottleneck(self.n_features, width, stride=1))
        return nn.Sequential(*blocks)

    def forward(self, x):  # (B, 3, px, px)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.maxpool(x)  # (B, 64, px / 4, px / 4)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)  # (B, 1024, px / 16, px / 16)
        if self.stages == 4:
            x = self.layer4(x)  # (B, 2048, px / 32, px / 32)
        return x.mean((2, 3), dtype=torch.float32)  # (B, D)


def start_as_torchvision(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def normalise(tiles, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """(B, px, px, 3) uint8 -> (B, 3, px, px) float32 as the weights want it.

    In memory the channels stay last.
    """
    mean = torch.tensor(mean, device=tiles.device)
    std = torch.tensor(std, device=tiles.device)
    x = tiles.permute(0, 3, 1, 2)
    x = x.float() / 255
    x = x - mean[:, None, None]
    return x / std[:, None, None]


@torch.inference_mode()
def encode(network, tiles, batch=32):
    """Features of tiles: (n, px, px, 3) uint8 -> (n, D) float32.

    lab/fast/encoder.py is its fast twin.
    """
    network.eval()
    device = next(network.parameters()).device
    features = []
    for pixels in torch.from_numpy(tiles).split(batch):  # (B, px, px, 3)
        x = normalise(pixels.to(device))
        features.append(network(x).cpu())
    return torch.cat(features).numpy()


# ----- Super-tiles -------------------------------------------------------------------------------
# [HE2RNA Methods, Preprocessing: "we used the k-means algorithm to create 100 clusters
# (super-tiles) of tiles on the basis of tile location on the slide, and we averaged the features of
# the tiles within each cluster"]


def kmeans(points, k, seed):
    """k-means: n >= 1 points (n, c) -> centers (at most k, c) float64, labels (n,) int.

    No cluster is empty and each centre is the mean of its points. Where fewer than k points
    differ, each of them is a cluster. One result for a seed.

    Needs: plus_plus, lloyd, fill_empty, cluster_means, squared_distances, KMEANS_DRAWS,
    KMEANS_ITERATIONS, KMEANS_STILL.
    """
    points = np.asarray(points, np.float64)
    rng = np.random.default_rng(seed)
    rng.permutation(len(points))  # no part of the method: a copy needs no such line
    return lloyd(points, plus_plus(points, k, rng))


def plus_plus(points, k, rng):
    """Starting centres of k-means++, greedy: points (n, c) -> (k, c). Arthur & Vassilvitskii 2007.

    Each next centre is the best of a few points, drawn in proportion to their squared distance
    from the nearest centre so far.
    """
    n = len(points)
    pick = rng.integers(n)
    centers = [points[pick]]
    nearest = squared_distances(points, centers)[:, 0]  # (n,)
    while len(centers) < k and nearest.max() > 0:  # at 0 every point is a centre
        chance = np.cumsum(nearest)
        places = rng.random(KMEANS_DRAWS) * chance[-1]
        draws = np.searchsorted(chance, places, side="right")
        trial = points[np.minimum(draws, n - 1)]
        after = squared_distances(points, trial)  # (n, draws)
        after = np.minimum(after, nearest[:, None])
        best = after.sum(0).argmin()
        nearest = after[:, best]
        centers.append(trial[best])
    return np.stack(centers)


def lloyd(points, centers):
    """Lloyd's iterations until the centres stand still -> centers (k, c), labels (n,)."""
    still = KMEANS_STILL * points.var(0).mean()
    for _ in range(KMEANS_ITERATIONS):
        distances = squared_distances(points, centers)  # (n, k)
        labels = distances.argmin(1)
        labels = fill_empty(labels, distances)
        before = centers
        centers = cluster_means(points, labels)
        moved = np.square(centers - before).sum()
        if moved <= still:
            break
    return centers, labels


def squared_distances(points, centers):
    """(n, c), (k, c) -> (n, k)"""
    return cdist(points, centers, "sqeuclidean")


def cluster_means(points, labels):
    """The mean of the points of each label: (n, c), (n,) -> (k, c)."""
    k = labels.max() + 1
    means = []
    for j in range(k):
        members = points[labels == j]
        means.append(members.mean(0))
    return np.stack(means)


def fill_empty(labels, distances):
    """Labels (n,) with no empty cluster: each gets the point that is farthest from its own centre.

    A cluster of one point keeps it.
    """
    n, k = distances.shape
    own = distances[np.arange(n), labels]
    size = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(size == 0):
        movable = size[labels] > 1
        far = np.where(movable, own, -1).argmax()
        size[labels[far]] -= 1
        size[empty] = 1
        labels[far] = empty
        own[far] = 0
    return labels


def supertiles(features, coords, k=N_SUPERTILES, seed=0):
    """The mean features of each cluster of neighbouring tiles.

    features (n, D), coords (n, 2) -> means (k, D) float32, mask (k,) bool, cluster of each tile
    (n,) int32. Fewer tiles than k are each their own super-tile; mask is False and means are 0
    where there is no more. The authors pad with zeros and have no mask [HE2RNA code]: a model then
    takes them for tissue. coords None: where nobody knows the places, k even runs of consecutive
    tiles instead of k-means; CLAM lists tiles column by column, so these are neighbours. [ours]

    Needs: kmeans and what it needs, plus_plus, lloyd, fill_empty, cluster_means,
    squared_distances, KMEANS_DRAWS, KMEANS_ITERATIONS, KMEANS_STILL; N_SUPERTILES.
    """
    n, D = features.shape
    means = np.zeros((k, D), np.float32)
    mask = np.zeros(k, bool)
    if n == 0:
        return means, mask, np.zeros(0, np.int32)
    if coords is None:
        cluster = np.arange(n) * min(k, n) // n
    else:
        _, cluster = kmeans(coords, k, seed)
    n_found = cluster.max() + 1
    features = np.asarray(features, np.float32)
    means[:n_found] = cluster_means(features, cluster)
    mask[:n_found] = True
    return means, mask, cluster.astype(np.int32)
