import matplotlib.pyplot as plt
import numpy as np

import flatminima as fm
from flatminima.report.style import group_colour

digits = fm.load_dataset("digits", limit=500)
groups = {"natural": digits, "random": fm.randomize_labels(digits, fraction=0.5, seed=1)}
sizes = [64, 128, 64, 10]
model = {"name": "mlp", "settings": {"sizes": sizes}}
recipe = fm.Recipe(epochs=80, batch_size=16, learning_rate=0.1)

figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.4), sharey=True, layout="constrained")
along = np.linspace(-8, 8, 65)
means = []
for k, (group, data) in enumerate(groups.items()):
    minimum = fm.train(model, data, recipe, seed=0, match_loss=0.1).matched
    scape = fm.Landscape(fm.build_model("mlp", sizes=sizes), data)
    radii = fm.flatness_radius(scape, minimum, directions=10, seed=0)
    # The same ten directions once more, for the whole of every ray.
    space = fm.Subspace.random(minimum, 10, seed=0)
    for direction in np.eye(10):
        losses = scape.losses(space, np.outer(along, direction)).loss
        panels[k].plot(along, losses, color=group_colour(k), lw=0.9, alpha=0.7)
    level = radii.loss + radii.threshold
    panels[k].axhline(level, color="0.4", lw=0.9, ls=(0, (4, 3)))
    panels[k].plot((radii.radius * radii.sign).values.ravel(), [level] * 20, "k.", ms=5, zorder=3)
    panels[k].set(title=f"{group} labels", xlabel="distance along the direction", ylim=(0, 0.5))
    means.append(f"{group} labels {float(radii.radius.mean()):.3g} at a loss of {radii.loss:.3g}")
panels[0].set_ylabel("train loss")

caption = (
    f"{len(digits)} digits, two networks of {radii.moved:,} weights, 10 random directions, both"
    f" ways. Dashed: {radii.threshold:g} above the minimum's own loss. Mean radii:"
    f" {'; '.join(means)}."
)
