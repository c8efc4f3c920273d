// Making and updating elements. Whatever the server says becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; strings among its children become text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Make an SVG element. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Say something in a place for it; an error in another colour. */
export function say(place, text, bad = false) {
  place.textContent = text;
  place.classList.toggle("bad", bad);
}

/**
 * Let a container have one child per item, in their order. Those of the same key are updated, not made anew: what is
 * being clicked must not vanish under the pointer.
 */
export function keep(container, items, keyOf, create, update) {
  const old = new Map([...container.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const key = keyOf(item);
    const child = old.get(key) ?? create(item);
    old.delete(key);
    child.dataset.key = key;
    update(child, item);
    if (container.children[index] !== child) container.insertBefore(child, container.children[index] ?? null);
  });
  for (const child of old.values()) child.remove();
}
