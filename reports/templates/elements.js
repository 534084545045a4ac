// Elements and numbers of a page. Strings reach it as text nodes only.

const MARKS = ["●", "◆", "■", "▲", "✚", "✖"];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A number's text with a true minus, which no zero has.
const trueMinus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replaceAll("-", "−"));

// The same with a plus where it is above 0 as written.
const signed = (text) => (Number(text) > 0 ? `+${text}` : trueMinus(text));
