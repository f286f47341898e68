import flatminima as fm
from flatminima.report.captions import contours_caption
from flatminima.report.contents import read_study
from flatminima.report.surfaces import contours_figure

study = read_study(fm.Store("results/mnist-paper"), "mnist-paper")
row = next(row for row in study.surface_rows() if row[0].checkpoint == "matched")
figure = contours_figure([(study, row)])
caption = contours_caption(study, row)
