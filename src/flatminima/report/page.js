"use strict";
(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const { rows, colours } = JSON.parse(document.getElementById("surfaces").textContent);
  const views = rows.map((row, index) => makeView(row, index));

  function showTheme() {
    themeButton.setAttribute("aria-pressed", String(isDark()));
    views.forEach((view) => view.paint());
  }
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  /** One row of surfaces with its own toggles, one colour scale and one camera. */
  function makeView(row, index) {
    const box = document.getElementById(`view-${index}`);
    const scenes = row.surfaces.map((_, i) => document.getElementById(`scene-${index}-${i}`));
    const state = { clip: true, log: false };
    // Plotly keeps the object it is given, so each scene gets its own copy.
    const copy = (value) => JSON.parse(JSON.stringify(value));
    let camera = row.camera;
    const everything = row.surfaces.flatMap((s) => [...s.loss.flat(), ...s.anchors.map((a) => a.loss)]);
    const finite = everything.filter((value) => value !== null);
    const positive = finite.filter((value) => value > 0);
    const lowest = Math.min(...positive);
    const highest = Math.max(...finite);

    // What is drawn of a loss: clipped, and on a log scale if asked for. Holes stay holes.
    const height = (loss) => {
      if (loss === null) return null;
      const value = state.clip ? Math.min(loss, row.clip) : loss;
      return state.log ? Math.log10(Math.max(value, lowest)) : value;
    };
    const limits = () => {
      const top = state.clip ? Math.min(row.clip, highest) : highest;
      return state.log ? [Math.log10(lowest), Math.log10(top)] : [0, state.clip ? row.clip : top];
    };
    const ticks = () => {
      const [low, high] = limits();
      if (state.log) {
        const places = [];
        const within = high - low < 2 ? [1, 2, 5] : [1];
        for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
          within.forEach((m) => places.push(power + Math.log10(m)));
        }
        const inside = places.filter((p) => p >= low - 1e-9 && p <= high + 1e-9);
        return inside.map((p) => [p, String(Number((10 ** p).toPrecision(3)))]);
      }
      const rough = (high - low) / 5;
      const unit = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((m) => m * unit).find((m) => m >= rough);
      const found = [];
      for (let value = 0; value <= high * 1.001; value += step) found.push(value);
      return found.map((value) => [value, String(Number(value.toPrecision(6)))]);
    };
    const short = (value, digits) => (value === null ? "not finite" : Number(value.toPrecision(digits)));

    function traces(surface) {
      const z = surface.loss.map((line) => line.map(height));
      const text = surface.loss.map((line, i) => line.map((loss, j) => [
        `loss ${short(loss, 4)}`,
        `accuracy ${surface.accuracy ? short(surface.accuracy[i][j], 4) : "not measured"}`,
        `u, v = ${short(surface.u[i][j], 4)}, ${short(surface.v[i][j], 4)}`,
        `x, y = ${short(surface.x[j], 3)}, ${short(surface.y[i], 3)}`,
      ].join("<br>")));
      const [low, high] = limits();
      const sheet = {
        type: "surface", x: surface.u, y: surface.v, z, surfacecolor: z, text,
        hoverinfo: "text", hovertemplate: "%{text}<extra></extra>", colorscale: colours,
        cmin: low, cmax: high, showscale: false, connectgaps: false,
        lighting: { ambient: 0.72, diffuse: 0.5, specular: 0.06, roughness: 0.9, fresnel: 0.02 },
        contours: {
          x: { highlight: false }, y: { highlight: false }, z: { highlight: false },
        },
      };
      const top = high + 0.1 * (high - low);
      const lines = { x: [], y: [], z: [] };
      surface.anchors.forEach((a) => {
        lines.x.push(a.u, a.u, null);
        lines.y.push(a.v, a.v, null);
        lines.z.push(height(a.loss), top, null);
      });
      const pins = {
        type: "scatter3d", mode: "lines", ...lines, hoverinfo: "skip",
        line: { color: variable("--ink"), width: 3 }, showlegend: false,
      };
      const minima = {
        type: "scatter3d", mode: "markers", showlegend: false,
        x: surface.anchors.map((a) => a.u), y: surface.anchors.map((a) => a.v),
        // A little above the sheet, so that it does not swallow half of every dot.
        z: surface.anchors.map((a) => (a.loss === null ? null : height(a.loss) + 0.02 * (high - low))),
        marker: { size: 5.5, color: "#e4572e", line: { color: "#ffffff", width: 1 } },
        text: surface.anchors.map((a, i) => [
          `minimum ${i + 1}: loss ${short(a.loss, 4)}`,
          `accuracy ${a.accuracy === null ? "not measured" : short(a.accuracy, 4)}`,
          `u, v = ${short(a.u, 4)}, ${short(a.v, 4)}`,
        ].join("<br>")),
        hovertemplate: "%{text}<extra></extra>",
      };
      const heads = {
        type: "scatter3d", mode: "text", showlegend: false, hoverinfo: "skip",
        x: minima.x, y: minima.y, z: surface.anchors.map(() => top),
        text: surface.anchors.map((a, i) => `${i + 1}: ${short(a.loss, 3)}`),
        textposition: "top center", textfont: { color: variable("--ink"), size: 12 },
      };
      return [sheet, pins, minima, heads];
    }

    function layout(surface) {
      const axis = (title) => ({
        title: { text: title, font: { size: 12 } }, color: variable("--muted"),
        gridcolor: variable("--line"), zeroline: false, showbackground: false, nticks: 6,
        showspikes: false, tickfont: { size: 10 },
      });
      const [low, high] = limits();
      const marks = ticks();
      const span = (values) => Math.max(...values.flat()) - Math.min(...values.flat());
      const [du, dv] = [span(surface.u), span(surface.v)];
      const size = 1.42 / Math.max(du, dv);
      return {
        margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)",
        font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', color: variable("--ink") },
        hoverlabel: {
          bgcolor: variable("--card"), bordercolor: variable("--muted"),
          font: { color: variable("--ink"), size: 12 }, align: "left",
        },
        modebar: {
          bgcolor: "rgba(0,0,0,0)", color: variable("--muted"), activecolor: variable("--accent"),
        },
        scene: {
          xaxis: axis("u"), yaxis: axis("v"),
          zaxis: {
            // The name stands at the top tick: a title of its own leaves narrow screens.
            ...axis(""), range: [low, high + 0.22 * (high - low)],
            tickvals: marks.map((m) => m[0]), ticktext: marks.map((m, i) => (i === marks.length - 1 ? `loss ${m[1]}` : m[1])),
          },
          aspectmode: "manual", aspectratio: { x: du * size, y: dv * size, z: 0.75 },
          camera: copy(camera), dragmode: "turntable",
        },
      };
    }

    const config = {
      responsive: true, displaylogo: false, scrollZoom: false,
      modeBarButtons: [["toImage", "tableRotation", "zoom3d", "pan3d"]],
    };

    function scale() {
      const bar = box.querySelector(".scale");
      const [low, high] = limits();
      const stops = colours.map(([place, colour]) => `${colour} ${(100 * place).toFixed(1)}%`);
      bar.querySelector(".ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      bar.querySelector(".ticks").replaceChildren(...ticks().map(([value, label]) => {
        const tick = document.createElement("span");
        tick.style.left = `${(100 * (value - low)) / (high - low)}%`;
        tick.textContent = label;
        return tick;
      }));
      const how = [
        state.log ? "logarithmic" : "linear",
        state.clip ? `clipped at ${row.clip} for drawing` : "not clipped",
      ];
      bar.querySelector(".name").textContent = `loss (${how.join(", ")})`;
    }

    function paint() {
      scale();
      return Promise.all(scenes.map((scene, i) => {
        const next = layout(row.surfaces[i]);
        return window.Plotly.react(scene, traces(row.surfaces[i]), next, config);
      }));
    }

    // The scene under the pointer leads, the others follow; the last camera is never dropped.
    let leader = null;
    let moved = false;
    let busy = false;
    function follow(event, source) {
      if (!event || !event["scene.camera"] || source !== leader) return;
      camera = copy(event["scene.camera"]);
      moved = true;
      if (!busy) turn();
    }
    function turn() {
      busy = true;
      window.requestAnimationFrame(() => {
        moved = false;
        Promise.all(scenes.filter((scene) => scene !== leader).map(aim)).then(() => {
          busy = false;
          if (moved) turn();
        });
      });
    }
    const aim = (scene) => window.Plotly.relayout(scene, { "scene.camera": copy(camera) });

    paint().then(() => scenes.forEach((scene) => {
      for (const kind of ["pointerdown", "touchstart", "wheel"]) {
        scene.addEventListener(kind, () => { leader = scene; }, { capture: true, passive: true });
      }
      scene.on("plotly_relayouting", (event) => follow(event, scene));
      scene.on("plotly_relayout", (event) => follow(event, scene));
      scene.dataset.ready = "true";
    }));
    box.querySelectorAll("button[data-toggle]").forEach((button) => {
      button.addEventListener("click", () => {
        const name = button.dataset.toggle;
        state[name] = !state[name];
        button.setAttribute("aria-pressed", String(state[name]));
        paint();
      });
    });
    box.querySelector("button[data-reset]").addEventListener("click", () => {
      leader = null;
      camera = row.camera;
      scenes.forEach(aim);
    });
    return { paint };
  }
})();
