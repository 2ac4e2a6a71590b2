"use strict";
// Plots take their colours from the style sheet, again whenever the reader changes between light and dark.
(async () => {
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        // Without permission the text is selected, so that one key copies it.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      const name = button.getAttribute("aria-label");
      button.setAttribute("aria-label", button.textContent);
      setTimeout(() => {
        button.textContent = "Copy";
        button.setAttribute("aria-label", name);
      }, 2000);
    });
  }

  const library = document.getElementById("plotly");
  if (!library) return;
  const packed = Uint8Array.from(atob(library.textContent.trim()), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  script.remove();
  library.remove();

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map(coloured) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each)]));
  };
  const axis = (title, log, format) => ({
    title: { text: title, standoff: 8, font: { size: 12.5 } }, type: log ? "log" : "linear", tickformat: format, automargin: true,
    gridcolor: colour("--grid"), zeroline: false, linecolor: colour("--border"), showline: true,
    tickcolor: colour("--border"), ticks: "outside", ticklen: 4, fixedrange: true,
    ...(log ? { dtick: 1, exponentformat: "power" } : {}),
  });
  const layout = (figure) => ({
    autosize: true, margin: { l: 56, r: 10, t: 8, b: 44 }, hovermode: "x unified", barmode: figure.axes.barmode,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--text") },
    hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--border"), font: { color: colour("--text") } },
    xaxis: axis(figure.x, figure.axes.xlog, ""),
    yaxis: { ...axis(figure.y, false, figure.axes.yformat), rangemode: figure.axes.yzero ? "tozero" : "normal" },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("--text") } },
    showlegend: figure.traces.filter((trace) => trace.showlegend !== false).length > 1,
    shapes: figure.lines.map((step) => ({
      type: "line", x0: step, x1: step, y0: 0, y1: 1, yref: "paper",
      line: { color: colour("--muted"), width: 1, dash: "dot" },
    })),
  });
  let times = 0;
  const draw = async () => {
    await Promise.all(figures.map((figure) => Plotly.react(
      `plot-${figure.name}`, coloured(figure.traces), layout(figure), { displayModeBar: false, responsive: true },
    )));
    times += 1;
    document.documentElement.dataset.drawn = String(times);
  };
  await draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
