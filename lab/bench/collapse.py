"""A picture of AdCo's collapse by eq. 1 alone, beside the default and SimCLR, on the toy."""

import histcode
from lab.bench.timing import say
from lab.histcode import toy
from lab.histcode.watching import nearest
from lab.show.plots import figure

NAMES = {  # of toy's ways to learn, as the picture has them
    "- the paper to the letter": "eq. 1 alone, bank of first keys (--follow paper)",
    "AdCo, the defaults": "AdCo as it is here",
    "SimCLR": "SimCLR",
}
SEED = 0


def trace(negatives, course):
    """Negatives that write loss, spread and hardest similarity of each step into the course."""

    def overhear(played, pair, loss):
        q, k = (part.detach() for part in pair)
        hardest = nearest(q, k, getattr(played, "w", None)).item()
        course.append((loss.item(), hardest, histcode.spread(q)))

    negatives.register_forward_hook(overhear)
    return negatives


def course_of(name, taught, tested):
    """Train as the toy's table does -> ([(loss, hardest, spread) of each step], accuracy)."""
    negatives, options = toy.ARMS[name]
    course = []

    def traced(model, views, seed):
        return trace(negatives(model, views, seed), course)

    model, _ = toy.learn(taught[0], SEED, traced, **options)
    return course, toy.accuracy(model.encoder, taught, tested)


def draw_collapse(path="adco_collapse.png"):
    """Draw loss, hardest similarity and spread of each step of the three ways."""
    taught = toy.draw_shapes(toy.PICTURES, 0)
    tested = toy.draw_shapes(toy.TESTED, 1)
    start = toy.accuracy(toy.embedder(SEED).encoder, taught, tested)
    title = f"{toy.STEPS} steps on drawn shapes; a linear probe tells {start:.0%} at the start"
    panels = ("loss", "mean cosine to the nearest negative", "spread of the embeddings")
    with figure(path, 1, 3, title=title, figsize=(10, 3.6)) as axes:
        for name, label in NAMES.items():
            course, right = course_of(name, taught, tested)
            say(f"{label}: accuracy {right:.3f}, last spread {course[-1][-1]:.2f}")
            for ax, values in zip(axes, zip(*course, strict=True), strict=True):
                ax.plot(values, lw=1.2, label=f"{label}: {right:.0%}")
        for ax, panel in zip(axes, panels, strict=True):
            ax.set(xlabel="step", ylabel=panel)
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    say(path)
