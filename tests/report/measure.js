// What is on the page, as a reader sees it. Colours are sRGB, contrast is that of WCAG 2.
const parse = (text) => {
  const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
  return { red, green, blue, alpha };
};
const over = (top, below) => ({
  red: top.red * top.alpha + below.red * (1 - top.alpha),
  green: top.green * top.alpha + below.green * (1 - top.alpha),
  blue: top.blue * top.alpha + below.blue * (1 - top.alpha),
  alpha: 1,
});
const luminance = ({ red, green, blue }) => {
  const [r, g, b] = [red, green, blue].map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const background = (element) => {
  const layers = [];
  for (let each = element; each; each = each.parentElement) {
    const found = parse(getComputedStyle(each).backgroundColor);
    if (found.alpha > 0) layers.push(found);
    if (found.alpha === 1) break;
  }
  return layers.reverse().reduce((below, top) => over(top, below), { red: 255, green: 255, blue: 255, alpha: 1 });
};
// Plotly measures texts in a drawing far outside of the window.
const isVisible = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })
  && element.getBoundingClientRect().width > 0 && element.getBoundingClientRect().right > 0;

// Every visible text with its contrast.
function texts() {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName) || !isVisible(element)) continue;
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    const below = background(element);
    const ink = parse(drawn ? style.fill : style.color);
    found.push({ text: node.data.trim().slice(0, 60), drawn, contrast: contrast(over(ink, below), below) });
  }
  return found;
}

// Elements that stick out of the window to the right, without a box that scrolls around them.
function overflow() {
  const scrolls = (element) => element !== document.documentElement && element !== document.body
    && ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX);
  const sticking = [...document.body.querySelectorAll("*")].filter((element) => {
    if (!isVisible(element) || element.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let each = element; each; each = each.parentElement) if (scrolls(each)) return false;
    return true;
  });
  return {
    page: document.documentElement.scrollWidth, window: innerWidth,
    sticking: sticking.map((element) => `${element.tagName}.${element.getAttribute("class")}`).slice(0, 5),
  };
}

// How much each plot shows: lines, bars and points that have a size.
function plots() {
  return Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) => [
    plot.id,
    [...plot.querySelectorAll(".trace path, .point path, path.point")].filter((path) => {
      const box = path.getBoundingClientRect();
      return box.width + box.height > 2;
    }).length,
  ]));
}

// Colours of the first line of each plot.
function inks() {
  return [...document.querySelectorAll(".plot .js-line")].map((path) => getComputedStyle(path).stroke);
}

// Contrast of every colour that lines and marks have with the card behind them.
function palette() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const rgb = (name) => { probe.style.color = `var(${name})`; return parse(getComputedStyle(probe).color); };
  const names = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `--series-${number}`).concat("--good", "--bad", "--warn");
  const found = Object.fromEntries(names.map((name) => [name, contrast(rgb(name), rgb("--surface"))]));
  probe.remove();
  return found;
}
