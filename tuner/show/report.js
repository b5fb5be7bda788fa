"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const config = { responsive: true, displaylogo: false, displayModeBar: false };

  // a figure takes the colours of the page, which follow the reader's theme
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: of("--line"), zerolinecolor: of("--line"), linecolor: of("--line") };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: of("--ink"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: of("--panel"), bordercolor: of("--line"), font: { color: of("--ink") } },
      xaxis: axis, yaxis: axis,
    };
  };
  const merged = (layout) => {
    const found = { ...layout, ...colours() };
    for (const name of ["xaxis", "yaxis"]) found[name] = { ...found[name], ...layout[name] };
    return found;
  };
  const draw = () => {
    for (const [name, figure] of Object.entries(data.figures)) {
      Plotly.react(name, figure.data, merged(figure.layout), config);
    }
  };

  const select = document.getElementById("plan");
  const shown = document.getElementById("chosen");
  const choose = (hash) => {
    const plan = data.plans[hash];
    if (!plan) return;
    select.value = hash;
    document.getElementById("told").textContent = plan.told;
    document.getElementById("layers").textContent = plan.layers;
    document.getElementById("code").textContent = plan.code;
    shown.hidden = false;
  };

  if (window.Plotly) {
    draw();
    const theme = window.matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", draw);
    const front = document.getElementById("front");
    if (front && data.figures.front) {
      front.on("plotly_click", (event) => choose(event.points[0].customdata));
    }
  }
  if (select) {
    select.addEventListener("change", () => choose(select.value));
    choose(select.value);
  }
})();
