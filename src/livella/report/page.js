// Draws each plot when it comes near the viewport, in the colours of the moment.
(() => {
  "use strict";
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const PAPER_WIDTH = 640;
  let printing = paper.matches;

  const legend = (plot) => [...plot.closest("figure").querySelectorAll("[data-series]")];

  // The names of the series switched off: the legend's buttons stand in the order of the lines.
  function hidden(plot, data) {
    const names = data.filter((trace) => trace.showlegend !== false).map((trace) => trace.legendgroup);
    const off = legend(plot).filter((button) => button.getAttribute("aria-pressed") === "false");
    return new Set(off.map((button) => names[button.dataset.series]));
  }

  async function draw(plot) {
    const theme = dark.matches && !printing ? "dark" : "light";
    const { data, layout } = structuredClone(drawings[plot.id][theme]);
    const off = hidden(plot, data);
    for (const trace of data) trace.visible = off.has(trace.legendgroup) ? "legendonly" : true;
    if (printing) layout.width = PAPER_WIDTH;
    await Plotly.react(plot, data, layout, { displayModeBar: false });
    plot.dataset.drawn = theme;
  }

  const redraw = () => plots.filter((plot) => plot.dataset.drawn).forEach(draw);

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((entry) => entry.isIntersecting)) {
        near.unobserve(entry.target);
        if (!entry.target.dataset.drawn) draw(entry.target);
      }
    },
    { rootMargin: "100% 0px" },
  );
  plots.forEach((plot) => near.observe(plot));

  // A plot follows its box, which changes with more than the window: on the way back from paper.
  const sized = new ResizeObserver((entries) => {
    for (const { target: plot } of entries) {
      if (plot.dataset.drawn && !printing) Plotly.Plots.resize(plot);
    }
  });
  plots.forEach((plot) => sized.observe(plot));

  for (const plot of plots) {
    for (const button of legend(plot)) {
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!shown));
        draw(plot);
      });
    }
  }

  function print(now) {
    if (printing === now) return;
    printing = now;
    plots.forEach((plot) => Plotly.purge(plot)); // or each would keep its width
    plots.forEach(draw);
  }
  dark.addEventListener("change", redraw);
  paper.addEventListener("change", (event) => print(event.matches));
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
