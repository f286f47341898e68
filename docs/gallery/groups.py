import matplotlib.pyplot as plt
import numpy as np

import flatminima as fm
from flatminima.report.style import loss_colours
from flatminima.report.surfaces import contour_norm

natural = fm.load_dataset("digits", limit=300)
digits = fm.randomize_labels(natural, fraction=0.5, seed=1)
sizes = [64, 128, 64, 10]
model = {"name": "mlp", "settings": {"sizes": sizes}}
recipe = fm.Recipe(epochs=80, batch_size=16, learning_rate=0.1)
minima = [fm.train(model, digits, recipe, seed=seed) for seed in range(3)]

subsets = {"natural": ~digits.changed, "changed": digits.changed}
scape = fm.Landscape(fm.build_model("mlp", sizes=sizes), digits, subsets=subsets)
plane = fm.Subspace.through(*minima)
surface = fm.loss_surface(scape, plane, resolution=31)

figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.5), sharey=True, layout="constrained")
for axes, (name, members) in zip(panels, subsets.items(), strict=True):
    filled = axes.contourf(
        surface.u, surface.v, surface[f"loss_{name}"], np.linspace(0, 6**0.5, 20) ** 2,
        cmap=loss_colours(), norm=contour_norm(6.0), extend="max",
    )  # fmt: skip
    axes.plot(surface.anchor_u, surface.anchor_v, "w^", mec="k")
    axes.set(aspect="equal", title=f"{int(members.sum())} {name} labels", xlabel="distance")
panels[0].set_ylabel("distance")
bar = figure.colorbar(filled, ax=panels, ticks=[0, 0.1, 0.5, 1, 2, 4, 6], format="%g")
bar.set_label("train loss (drawn up to 6)")

middle = scape.losses(plane, plane.barycentric(np.full((1, 3), 1 / 3))).metrics
losses = {name: float(middle[f"loss_{name}"][0]) for name in subsets}
caption = (
    f"{len(digits)} digits; least accuracy at the three minima:"
    f" {float(surface.anchor_accuracy.min()):.3g}. In the middle between them the loss is"
    f" {losses['natural']:.3g} on the natural labels and {losses['changed']:.3g} on the changed."
)
