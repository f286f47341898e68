import flatminima as fm
from flatminima.report.captions import surfaces_caption
from flatminima.report.contents import read_study
from flatminima.report.surfaces import surfaces_figure

study = read_study(fm.Store("results/mnist-paper"), "mnist-paper")
row = next(row for row in study.surface_rows() if row[0].checkpoint == "matched")
figure = surfaces_figure([(study, row)])
caption = surfaces_caption(study, row)
