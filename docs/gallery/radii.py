from matplotlib.figure import Figure

import flatminima as fm
from flatminima.report.contents import read_study
from flatminima.report.radii import draw_radii, legend_handles

study = read_study(fm.Store("results/mnist-paper"), "mnist-paper")
figure = Figure(figsize=(7.6, 3.6), layout="constrained")
for axes, parameters in zip(figure.subplots(1, 2), ("all", "top"), strict=True):
    draw_radii(axes, study, "measured_matched", parameters)
figure.legend(handles=legend_handles(study)[:3], loc="outside lower center", ncols=3)

found = study.summary.sel(column="measured_matched")
losses = found.train_loss.sel(parameters="all")
means = [
    f"{what}, {group} labels {float(found.group_mean.sel(parameters=which, group=group)):.3g}"
    for which, what in (("all", "all parameters"), ("top", "top layer"))
    for group in study.groups
]
caption = (
    f"MNIST, {losses.sizes['network']} networks a group, at train losses of"
    f" {float(losses.min()):.3g} to {float(losses.max()):.3g}. Mean radii: {'; '.join(means)}."
)
